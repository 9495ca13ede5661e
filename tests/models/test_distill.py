"""The cross-entropy of a student under its teacher, against the softmaxes of both written out in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from openrlhf.models.causal_lm import CausalLM, TokenScores
from openrlhf.models.teacher import Teacher
from openrlhf.types import Batch
from tests.models.helpers import FAMILIES, VOCAB, build, make_batch

HIDDEN = 32  # of every model here
# These families compute their norms' gradients in float32 whatever the model's type.
ATOL = {"gemma3, window 3, capped": 1e-6, "cohere": 1e-6}


def reference(student: nn.Module, teacher: nn.Module, batch: Batch, vocabulary: int = VOCAB) -> tuple[Tensor, Tensor]:
    """Log-probs and cross-entropies one row and one token at a time, without padding; student over all its logits."""
    log_probs = torch.zeros(batch.tokens.shape, dtype=torch.float64)
    cross = torch.zeros_like(log_probs)
    for b, length in enumerate(batch.lengths.tolist()):
        row = batch.tokens[b : b + 1, :length]
        logits = student(row, use_cache=False).logits[0]
        with torch.no_grad():
            taught = teacher(row, use_cache=False).logits[0, :, :vocabulary]
        for t in range(1, length):
            if batch.action_mask[b, t]:
                log_p = torch.log(torch.exp(logits[t - 1]) / torch.exp(logits[t - 1]).sum())
                q = torch.exp(taught[t - 1]) / torch.exp(taught[t - 1]).sum()
                log_probs[b, t] = log_p[batch.tokens[b, t]]
                cross[b, t] = -(q * log_p[:vocabulary]).sum()
    return log_probs, cross


def gradients(model: nn.Module, log_probs: Tensor, cross: Tensor) -> dict[str, Tensor]:
    """Of a scalar with a different weight on every element of both."""
    model.zero_grad()
    weights = torch.linspace(0.5, 1.5, cross.numel(), dtype=torch.float64).view_as(cross)
    ((log_probs * weights.flip(1)).sum() + (cross * weights).sum()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def distilled(student: nn.Module, teacher: nn.Module, batch: Batch, rows: int = 1000, packed: bool = False) -> Any:
    teaching = Teacher(CausalLM(teacher), VOCAB)(batch, packed=packed)
    return CausalLM(student, chunk_elements=rows * VOCAB)(batch, packed=packed, teaching=teaching)


def assert_equal(student: nn.Module, got: TokenScores, expected: tuple[Tensor, Tensor], atol: float = 1e-10) -> None:
    assert got.cross_entropy is not None
    torch.testing.assert_close(got.log_probs, expected[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(got.cross_entropy, expected[1], rtol=0, atol=1e-10)
    a, b = gradients(student, got.log_probs, got.cross_entropy), gradients(student, *expected)
    assert a.keys() == b.keys() and a
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_scores_and_gradients_equal_the_definition(packed: bool, rows: int) -> None:
    student, teacher, batch = build("qwen3 tied"), build(seed=1), make_batch()
    assert_equal(student, distilled(student, teacher, batch, rows, packed), reference(student, teacher, batch))
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_families_on_both_sides(family: str) -> None:
    """Scaled and capped logits count in the distribution of the teacher as in that of the student."""
    batch = make_batch()
    for student, teacher in [(build(family), build(seed=1)), (build(), build(family, seed=1))]:
        got, expected = distilled(student, teacher, batch), reference(student, teacher, batch)
        assert_equal(student, got, expected, ATOL.get(family, 1e-10))


@pytest.mark.parametrize(("of_student", "of_teacher"), [(5, 0), (0, 7), (3, 9)])
def test_heads_padded_to_different_sizes(of_student: int, of_teacher: int) -> None:
    """Only the tokenizer's tokens have probability under the teacher; the student is normalised over all it has."""
    student, teacher, batch = build(), build(seed=1), make_batch()
    student.lm_head = nn.Linear(32, VOCAB + of_student, bias=True, dtype=torch.float64)
    teacher.lm_head = nn.Linear(32, VOCAB + of_teacher, bias=True, dtype=torch.float64)
    assert_equal(student, distilled(student, teacher, batch, rows=2), reference(student, teacher, batch))


@pytest.mark.parametrize("rows", [2, 1000])
def test_infinite_logits_are_left_out(rows: int) -> None:
    """A token that neither model can choose takes nothing away from the others, nor from their gradients."""
    batch = make_batch()
    batch = batch.fill(tokens=batch.tokens.clamp(max=VOCAB - 2))

    def barred(seed: int, value: float) -> nn.Module:
        hf = build(seed=seed)
        hf.lm_head = nn.Linear(32, VOCAB, bias=True, dtype=torch.float64)
        hf.lm_head.bias.data[-1] = value
        return hf

    got = distilled(student := barred(0, -torch.inf), barred(1, -torch.inf), batch, rows)
    low = distilled(same := barred(0, -1e4), barred(1, -1e4), batch, rows)
    assert low.cross_entropy is not None
    torch.testing.assert_close(got.cross_entropy, low.cross_entropy)
    torch.testing.assert_close(
        gradients(student, got.log_probs, got.cross_entropy), gradients(same, low.log_probs, low.cross_entropy)
    )


def test_the_student_that_equals_its_teacher_has_its_entropy_as_loss() -> None:
    batch = make_batch()
    got = distilled(build(), build(), batch)
    torch.testing.assert_close(got.cross_entropy, CausalLM(build())(batch, entropy=True).entropy)


class TallestLogits(TorchDispatchMode):
    """Watches for the most rows of logits, or of anything as wide, that any operation makes at a time."""

    rows = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, Tensor) and x.dim() == 2 and x.shape[1] == VOCAB and x.shape[0] != HIDDEN:
                self.rows = max(self.rows, len(x))
        return result


def test_the_logits_of_a_batch_never_exist_forwards_or_backwards() -> None:
    student, teacher, batch = build(), build(seed=1), make_batch()
    for rows in (2, 5):
        with TallestLogits() as tallest:
            got = distilled(student, teacher, batch, rows)
            (got.log_probs + got.cross_entropy).sum().backward()
        assert tallest.rows == rows < int(batch.action_mask.sum()) < HIDDEN


def test_both_heads_run_once_whatever_the_chunks() -> None:
    """Ranks have different chunk counts, but their weight-gathering hooks must run equally often."""
    student, teacher, batch = build(), build(seed=1), make_batch()
    calls: list[str] = []
    for name, hf in {"student": student, "teacher": teacher}.items():
        hf.lm_head.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    student.lm_head.register_full_backward_hook(lambda *_: calls.append("backward"))
    got = distilled(student, teacher, batch, rows=1)
    (got.log_probs + got.cross_entropy).sum().backward()
    assert calls == ["teacher", "student", "backward"]


def test_the_teaching_outlives_the_teachers_weights() -> None:
    """A sharded teacher lets go of its head's weight after its forward: the student's backward needs it still."""
    student, teacher, batch = build(), build(seed=1), make_batch()
    expected = gradients(student, *reference(student, teacher, batch))
    teacher.lm_head.register_forward_hook(
        lambda head, *_: setattr(head.weight, "data", torch.empty(0, dtype=torch.float64))
    )
    got = distilled(student, teacher, batch, rows=2)
    torch.testing.assert_close(gradients(student, got.log_probs, got.cross_entropy), expected)


@pytest.mark.parametrize("packed", [False, True])
def test_batch_without_action_tokens_is_zero_and_differentiable(packed: bool) -> None:
    student, batch = build(), make_batch()
    got = distilled(student, build(seed=1), batch.fill(action_mask=torch.zeros_like(batch.action_mask)), packed=packed)
    assert not got.cross_entropy.any()
    assert not any(g.any() for g in gradients(student, got.log_probs, got.cross_entropy).values())


def test_a_head_that_is_no_matrix_is_refused() -> None:
    hf = build()
    hf.lm_head = nn.Sequential(hf.lm_head)
    with pytest.raises(ValueError, match="--teacher_model"):
        Teacher(CausalLM(hf), VOCAB)
