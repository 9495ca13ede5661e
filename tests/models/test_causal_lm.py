"""Log-probabilities, entropies and their gradients, against plain Hugging Face logits and the definitions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from openrlhf.models import attention, head
from openrlhf.models.causal_lm import CausalLM, TokenScores
from openrlhf.types import Batch
from tests.models.helpers import FAMILIES, VOCAB, build, make_batch

# These families compute their norms' gradients in float32 whatever the model's type.
ATOL = {"gemma3, window 3, capped": 1e-6, "cohere": 1e-6}


def reference(hf: nn.Module, batch: Batch, temperature: float = 1.0) -> TokenScores:
    """One row at a time, without padding, softmax written out."""
    log_probs = torch.zeros(batch.tokens.shape, dtype=torch.float64)
    entropy = torch.zeros_like(log_probs)
    for b, length in enumerate(batch.lengths.tolist()):
        logits = hf(batch.tokens[b : b + 1, :length], use_cache=False).logits[0] / temperature
        for t in range(1, length):
            if batch.action_mask[b, t]:
                p = torch.exp(logits[t - 1]) / torch.exp(logits[t - 1]).sum()
                log_probs[b, t] = torch.log(p[batch.tokens[b, t]])
                entropy[b, t] = -(p * torch.log(p)).sum()
    return TokenScores(log_probs, entropy)


def objective(scores: TokenScores) -> Tensor:
    """Some scalar with a different weight on every element."""
    weights = torch.linspace(0.5, 1.5, scores.log_probs.numel(), dtype=torch.float64).view_as(scores.log_probs)
    loss = (scores.log_probs * weights).sum()
    return loss if scores.entropy is None else loss + (scores.entropy * weights.flip(1)).sum()


def gradients(model: nn.Module, scores: TokenScores) -> dict[str, Tensor]:
    model.zero_grad()
    objective(scores).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor], atol: float = 1e-10) -> None:
    assert a.keys() == b.keys() and a
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


def test_shift_on_five_tokens_by_hand() -> None:
    """Entry t is the log-probability of token t under the logits at t − 1."""
    hf = build()
    tokens = torch.tensor([[5, 9, 2, 7, 1]])
    action = torch.tensor([[True, False, True, False, True]])
    batch = Batch(tokens=tokens, attention_mask=torch.ones_like(action), action_mask=action)
    got = CausalLM(hf)(batch).log_probs[0].tolist()
    logits = hf(tokens, use_cache=False).logits[0].tolist()
    for t, token in enumerate([5, 9, 2, 7, 1]):
        if t in (2, 4):
            expected = logits[t - 1][token] - math.log(sum(math.exp(x) for x in logits[t - 1]))
            assert got[t] == pytest.approx(expected, abs=1e-12)
        else:
            assert got[t] == 0.0


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("packed", [False, True])
def test_scores_and_gradients_equal_the_definition(temperature: float, packed: bool) -> None:
    hf, batch = build(), make_batch()
    expected = reference(hf, batch, temperature)
    got = CausalLM(hf, chunk_elements=4 * VOCAB)(batch, temperature, entropy=True, packed=packed)
    torch.testing.assert_close(got.log_probs, expected.log_probs, rtol=0, atol=1e-10)
    torch.testing.assert_close(got.entropy, expected.entropy, rtol=0, atol=1e-10)
    assert_same(gradients(hf, got), gradients(hf, expected))


@pytest.mark.parametrize("family", FAMILIES)
def test_families_packed_padded_and_one_by_one(family: str) -> None:
    hf, batch = build(family), make_batch()
    expected = reference(hf, batch)
    want = gradients(hf, expected)
    for packed, rows in [(False, 1000), (True, 1000), (True, 3)]:
        got = CausalLM(hf, chunk_elements=rows * VOCAB)(batch, entropy=True, packed=packed)
        torch.testing.assert_close(got.log_probs, expected.log_probs, rtol=0, atol=1e-10)
        assert_same(gradients(hf, got), want, atol=ATOL.get(family, 1e-10))


def test_float32_gives_float32_close_to_float64() -> None:
    batch = make_batch()
    wide, narrow = (CausalLM(build(dtype=dtype))(batch, entropy=True) for dtype in (torch.float64, torch.float32))
    assert narrow.log_probs.dtype == torch.float32
    torch.testing.assert_close(narrow.log_probs.double(), wide.log_probs, rtol=1e-4, atol=1e-4)


def test_bfloat16_head_answers_in_float32_with_usable_gradients() -> None:
    """Head products in half precision, everything between them in float32; the reference is float32 autograd."""
    batch = make_batch()
    half = build(dtype=torch.bfloat16)
    full = build(dtype=torch.bfloat16).float()
    got = CausalLM(half, chunk_elements=4 * VOCAB)(batch, entropy=True)
    assert got.log_probs.dtype == torch.float32
    name = "lm_head.weight"
    a, b = gradients(half, got)[name].float(), gradients(full, reference(full, batch))[name].float()
    assert float((a - b).norm() / b.norm()) < 0.05


@pytest.mark.parametrize("rows", [1, 2, 5, 1000])
def test_chunk_size_does_not_matter(rows: int) -> None:
    hf, batch = build(), make_batch()
    whole = CausalLM(hf)(batch, temperature=0.7, entropy=True)
    parts = CausalLM(hf, chunk_elements=rows * VOCAB)(batch, temperature=0.7, entropy=True)
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-12)
    assert_same(gradients(hf, whole), gradients(hf, parts), atol=1e-11)


@pytest.mark.parametrize("kept", [0, 5, 8, 1000])
@pytest.mark.parametrize("entropy", [False, True])
def test_how_many_logits_are_kept_does_not_matter(kept: int, entropy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks of 3 tokens."""
    hf, batch = build("gemma3, window 3, capped"), make_batch()
    monkeypatch.setitem(head.CHUNK_ELEMENTS, "cpu", 3 * VOCAB)
    monkeypatch.setitem(head.KEPT_ELEMENTS, "cpu", kept * VOCAB)
    expected = reference(hf, batch, temperature=0.7)
    got = CausalLM(hf)(batch, temperature=0.7, entropy=entropy)
    torch.testing.assert_close(got.log_probs, expected.log_probs, rtol=0, atol=1e-10)
    wanted = expected if entropy else expected._replace(entropy=None)
    assert_same(gradients(hf, got), gradients(hf, wanted), atol=ATOL["gemma3, window 3, capped"])


class WrappedHead(nn.Module):
    """A head that is not a plain matrix, as an adapter makes it."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner
        self.low = nn.Parameter(torch.full((VOCAB, 1), 0.01, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x[..., :1] @ self.low.T


@pytest.mark.parametrize("family", ["qwen3", "gemma3, window 3, capped", "granite"])
@pytest.mark.parametrize("rows", [2, 1000])
def test_wrapped_head_equals_the_definition(family: str, rows: int) -> None:
    hf, batch = build(family), make_batch()
    hf.lm_head = WrappedHead(hf.lm_head)
    expected = reference(hf, batch, temperature=0.7)
    got = CausalLM(hf, chunk_elements=rows * VOCAB)(batch, temperature=0.7, entropy=True)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    assert_same(gradients(hf, got), gradients(hf, expected), atol=ATOL.get(family, 1e-10))


def test_head_with_bias_equals_the_definition() -> None:
    hf, batch = build(), make_batch()
    hf.lm_head = nn.Linear(32, VOCAB, bias=True, dtype=torch.float64)
    expected = reference(hf, batch, temperature=0.7)
    got = CausalLM(hf, chunk_elements=3 * VOCAB)(batch, temperature=0.7, entropy=True)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    assert_same(gradients(hf, got), gradients(hf, expected))


@pytest.mark.parametrize("wrap", [False, True])
def test_head_module_runs_once_whatever_the_chunks(wrap: bool) -> None:
    """Ranks have different chunk counts, but their weight-gathering hooks must run equally often."""
    hf, batch = build(), make_batch()
    if wrap:
        hf.lm_head = WrappedHead(hf.lm_head)
    calls: list[Any] = []
    hf.lm_head.register_forward_pre_hook(lambda *_: calls.append("forward"))
    hf.lm_head.register_full_backward_hook(lambda *_: calls.append("backward"))
    objective(CausalLM(hf, chunk_elements=VOCAB)(batch)).backward()
    assert calls == ["forward", "backward"]
    assert hf.lm_head(torch.zeros(1, 32, dtype=torch.float64)).shape == (1, VOCAB)  # and is itself again


def test_frozen_head_still_passes_gradients_through() -> None:
    hf, batch = build(), make_batch()
    want = gradients(hf, reference(hf, batch))
    hf.lm_head.requires_grad_(False)
    got = gradients(hf, CausalLM(hf)(batch, entropy=True))
    assert got.keys() == want.keys() - {"lm_head.weight"}
    assert_same(got, {name: want[name] for name in got})


@pytest.mark.parametrize("packed", [False, True])
def test_batch_without_action_tokens_is_zero_and_differentiable(packed: bool) -> None:
    hf, batch = build(), make_batch()
    scores = CausalLM(hf)(batch.fill(action_mask=torch.zeros_like(batch.action_mask)), entropy=True, packed=packed)
    assert not scores.log_probs.any() and not scores.entropy.any()
    assert all(not g.any() for g in gradients(hf, scores).values())


@pytest.mark.parametrize("packed", [False, True])
def test_what_stands_in_padding_does_not_matter(packed: bool) -> None:
    hf, batch = build(), make_batch()
    garbage = batch.fill(
        tokens=torch.where(batch.attention_mask, batch.tokens, 3),
        action_mask=batch.action_mask | ~batch.attention_mask,
    )
    model = CausalLM(hf)
    a, b = model(batch, packed=packed), model(garbage, packed=packed)
    assert torch.equal(a.log_probs, b.log_probs)


def test_nan_in_padding_embeddings_reaches_nothing() -> None:
    hf, batch = build(), make_batch()
    poisoned = batch.fill(tokens=torch.where(batch.attention_mask, batch.tokens, 0))
    want = gradients(hf, CausalLM(hf)(poisoned))
    hf.model.embed_tokens.weight.data[0] = float("nan")
    scores = CausalLM(hf)(poisoned, packed=True)
    assert torch.isfinite(scores.log_probs).all()
    assert_same(gradients(hf, scores), want)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(packed: bool, reentrant: bool) -> None:
    hf, batch = build("mistral, window 3"), make_batch()
    model = CausalLM(hf)
    plain = model(batch, entropy=True, packed=packed)
    want = gradients(hf, plain)
    hf.gradient_checkpointing_enable({"use_reentrant": reentrant})
    checkpointed = model(batch, entropy=True, packed=packed)
    assert torch.equal(plain.log_probs, checkpointed.log_probs)
    # The other kind of forward between forward and backward must not confuse the recomputation.
    model(batch, packed=not packed)
    assert_same(gradients(hf, checkpointed), want, atol=1e-12)


def test_left_padding_is_understood_too() -> None:
    hf = build()
    right = make_batch((4,))
    shift = [torch.nn.functional.pad(x, (3, 0)) for x in (right.tokens, right.attention_mask, right.action_mask)]
    left = Batch(tokens=shift[0], attention_mask=shift[1], action_mask=shift[2])
    for packed in (False, True):
        got = CausalLM(hf)(left, packed=packed).log_probs[:, 3:]
        torch.testing.assert_close(got, CausalLM(hf)(right).log_probs, rtol=0, atol=1e-12)


def test_generation_with_our_attention_equals_eager() -> None:
    """The same weights also generate: left padding and a cache go through Transformers' own path."""
    ours = build(dtype=torch.float32).eval()
    prompts = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
    options = {"attention_mask": (prompts != 0).long(), "max_new_tokens": 8, "do_sample": False}
    got = ours.generate(prompts, **options)
    ours.set_attn_implementation("eager")
    assert torch.equal(got, ours.generate(prompts, **options))
    assert ours.config._attn_implementation != attention.NAME
