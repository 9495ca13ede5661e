"""Packed rows that begin alike, against each row alone."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from certificate.norms import with_exact_norms
from openrlhf.models import attention
from openrlhf.models.causal_lm import CausalLM
from openrlhf.models.value_head import ScoreModel
from openrlhf.types import Batch
from tests.models.helpers import FAMILIES, VOCAB, build, build_scorer
from tests.models.test_causal_lm import ATOL, assert_same, gradients, reference

PROMPT, OTHER = [5, 6, 7, 8], [9, 10]
ROWS = [
    [*PROMPT, 11, 12, 13],
    [*PROMPT, 11, 14],  # shares a token of the answer, too
    [*PROMPT, 15, 16, 17, 18],  # less than the row before
    [*OTHER, 19],  # shares nothing
    [*OTHER, 20, 21, 22],
    [*OTHER, 20, 21, 22],  # the same: one token stays its own
    [*OTHER, 20, 21],  # the beginning of the row before
    [30],
    [30],
]
DISTINCT = sum([7, 1, 4, 3, 3, 1, 1, 1, 1])  # tokens that are left


def batch_of(rows: list[list[int]], before: int = 0) -> Batch:
    """Right-padded, or with ``before`` columns of padding on the left. Every token but the first two is an action."""
    width = max(map(len, rows)) + before
    tokens, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.bool)
    for b, row in enumerate(rows):
        tokens[b, before : before + len(row)] = torch.tensor(row)
        mask[b, before : before + len(row)] = True
    action = mask.clone()
    action[:, : before + 2] = False
    return Batch(tokens=tokens, attention_mask=mask, action_mask=action)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Queries in each packed call of our attention."""
    seen: list[int] = []
    segments = attention._attend_segments

    def spy(query: Tensor, *rest: object) -> Tensor:
        seen.append(query.shape[2])
        return segments(query, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(attention, "_attend_segments", spy)
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_entropies_and_gradients(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hf, batch = with_exact_norms(build(family)), batch_of(ROWS)
    expected = reference(hf, batch)
    seen = counted(monkeypatch)
    got = CausalLM(hf, chunk_elements=3 * VOCAB)(batch, entropy=True, packed=True)
    assert set(seen) == {DISTINCT}
    torch.testing.assert_close(got.log_probs, expected.log_probs, rtol=0, atol=1e-10)
    torch.testing.assert_close(got.entropy, expected.entropy, rtol=0, atol=1e-10)
    assert_same(gradients(hf, got), gradients(hf, expected), atol=10 * ATOL.get(family, 1e-11))


@pytest.mark.parametrize("what", ["scores", "values"])
def test_scores_and_values(what: Literal["scores", "values"]) -> None:
    hf, batch = build_scorer(), batch_of(ROWS)
    model = ScoreModel(hf)
    alone = [model(batch_of([row]), what) for row in ROWS]
    width = batch.tokens.shape[1]
    expected = torch.cat([torch.nn.functional.pad(x, (0, width - x.shape[1])) if x.dim() == 2 else x for x in alone])
    weights = torch.linspace(0.5, 1.5, expected.numel(), dtype=torch.float64).view_as(expected)
    (expected * weights).sum().backward()
    want = {name: p.grad.clone() for name, p in hf.named_parameters() if p.grad is not None}
    hf.zero_grad()
    got = model(batch, what, packed=True)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    (got * weights).sum().backward()
    assert_same({name: p.grad for name, p in hf.named_parameters() if p.grad is not None}, want)


@pytest.mark.parametrize("reentrant", [False, True])
def test_with_gradient_checkpointing(reentrant: bool) -> None:
    hf, batch = with_exact_norms(build()), batch_of(ROWS)
    expected = gradients(hf, reference(hf, batch))
    hf.gradient_checkpointing_enable({"use_reentrant": reentrant})
    hf.enable_input_require_grads()
    got = CausalLM(hf)(batch, entropy=True, packed=True)
    assert_same(gradients(hf, got), expected)


def test_rows_that_padding_shifts_share_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    hf, batch = build(), batch_of(ROWS, before=2)
    seen = counted(monkeypatch)
    got = CausalLM(hf)(batch, packed=True)
    assert set(seen) == {sum(map(len, ROWS))}
    alone = CausalLM(hf)(batch_of(ROWS))
    torch.testing.assert_close(got.log_probs[:, 2:], alone.log_probs, rtol=0, atol=1e-10)


def test_a_short_beginning_is_not_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [[5, *range(10, 30)], [5, *range(40, 60)]]
    seen = counted(monkeypatch)
    CausalLM(build())(batch_of(rows), packed=True)
    assert set(seen) == {42}
