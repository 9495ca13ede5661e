"""Packed samples never see each other, and plain Transformers settings would let them."""

from __future__ import annotations

import pytest
import torch

from openrlhf.models.attention import _mask_between, attend
from openrlhf.models.causal_lm import CausalLM
from openrlhf.models.packing import positions, predicted
from openrlhf.types import Batch
from tests.models.helpers import build, make_batch


@pytest.mark.parametrize("family", ["qwen3", "mistral, window 3"])
@pytest.mark.parametrize("changed", [0, 1, 3, 5])
def test_changing_one_sample_leaves_the_others_bit_for_bit(family: str, changed: int) -> None:
    model, batch = CausalLM(build(family, torch.float32)), make_batch((9, 6, 9, 9, 6, 4))
    tokens = batch.tokens.clone()
    tokens[changed] = (tokens[changed] + 11) % 90 + 2
    before = model(batch, packed=True).log_probs
    after = model(batch.fill(tokens=tokens), packed=True).log_probs
    others = torch.arange(len(batch)) != changed
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[changed], after[changed])


def test_transformers_default_cache_leaks_where_we_do_not() -> None:
    """Restarting positions with the default cache, or a mask of ones, are one long sequence to Transformers."""
    hf, batch = build().eval().requires_grad_(False), make_batch((6, 5, 7))
    alone = torch.cat(
        [hf(batch.tokens[b : b + 1, :n], use_cache=False).logits[0] for b, n in enumerate(batch.lengths.tolist())]
    )
    mask = batch.attention_mask
    packed = {"input_ids": batch.tokens[mask][None], "position_ids": positions(mask)[mask][None]}
    hf.set_attn_implementation("sdpa")
    for leaky in ({"use_cache": True}, {"attention_mask": torch.ones_like(packed["input_ids"])}):
        assert float((hf(**packed, **leaky).logits[0] - alone).abs().max()) > 0.1
    hf.set_attn_implementation("openrlhf")
    at = torch.zeros_like(batch.tokens)
    at[mask] = torch.arange(int(mask.sum()))
    full = batch.fill(action_mask=mask)
    got = CausalLM(hf)(full, packed=True).log_probs
    rows = predicted(full)
    want = alone.log_softmax(-1)[at[rows] - 1, batch.tokens[rows]]
    torch.testing.assert_close(got[rows], want, rtol=0, atol=1e-10)


def test_no_square_mask_is_built_when_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a mask was built")

    monkeypatch.setattr("openrlhf.models.attention.sdpa_mask", refuse)
    model, batch = CausalLM(build("mistral, window 3")), make_batch()
    model(batch, packed=True)
    with pytest.raises(AssertionError, match="a mask was built"):
        model(batch, packed=False)


@pytest.mark.parametrize("lengths", [[5], [3, 3, 3], [1, 4, 4, 1, 6], [2, 0, 2]])
@pytest.mark.parametrize("window", [None, 2, 4])
def test_segments_equal_attention_written_out(lengths: list[int], window: int | None) -> None:
    torch.manual_seed(0)
    q = torch.randn(1, 4, sum(lengths), 8, dtype=torch.float64)
    k, v = torch.randn(2, 1, 2, sum(lengths), 8, dtype=torch.float64)
    borders = torch.tensor([0, *lengths]).cumsum(0).int()
    got, _ = attend(
        torch.nn.Identity(), q, k, v, None, scaling=0.3, sliding_window=window,
        cu_seq_lens_q=borders, cu_seq_lens_k=borders, max_length_q=max(lengths), max_length_k=max(lengths),
    )  # fmt: skip
    for start, length in zip(borders.tolist(), lengths, strict=False):
        for i in range(length):
            first = 0 if window is None else max(0, i - window + 1)
            seen = slice(start + first, start + i + 1)
            for head in range(4):
                weights = torch.softmax(k[0, head // 2, seen] @ q[0, head, start + i] * 0.3, dim=0)
                want = weights @ v[0, head // 2, seen]
                torch.testing.assert_close(got[0, start + i, head], want, rtol=0, atol=1e-12)


def test_mask_by_hand() -> None:
    assert _mask_between(4, 4, 2, torch.device("cpu")).int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 1, 1, 0],
        [0, 0, 1, 1],
    ]


@pytest.mark.parametrize("option", ["softcap", "s_aux"])
def test_attention_that_packing_does_not_know_is_refused(option: str) -> None:
    x = torch.zeros(1, 1, 2, 8)
    borders = torch.tensor([0, 2])
    with pytest.raises(ValueError, match="--packing_samples does not support"):
        attend(
            torch.nn.Identity(), x, x, x, None, cu_seq_lens_q=borders, cu_seq_lens_k=borders,
            max_length_q=2, max_length_k=2, **{option: 1.0},
        )  # fmt: skip


def test_predicted_leaves_out_first_tokens_and_padding() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]).bool()
    action = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1]]).bool()
    batch = Batch(tokens=torch.zeros(2, 4, dtype=torch.long), attention_mask=mask, action_mask=action)
    assert predicted(batch).int().tolist() == [[0, 0, 1, 0], [0, 1, 0, 0]]
