"""For every statement a fault of the kind it is there for: the check must notice, or it proves nothing."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from certificate import methods, saved
from certificate.methods import METHODS
from certificate.saved import SAVED
from certificate.statements import STATEMENTS
from certificate.steps import load_subject
from openrlhf.models import adapters, attention, head, packing
from openrlhf.models.load import saved_tensors
from openrlhf.training import members, update
from openrlhf.types import Batch
from tests.certificate.threads import two_ranks

pytestmark = pytest.mark.slow

FEW = ["sft", "rm", "kto", "ppo, policy at temperature 0.5"]  # a loss per token, pair, example and with every term
each_kind = pytest.mark.parametrize("method", FEW)


def notices(id: str, method: str, models: Path) -> bool:
    error = STATEMENTS[id].check(load_subject(METHODS[method], models), 0)
    assert error is not None
    return max(error.gradient, error.metrics) > STATEMENTS[id].tolerance


@each_kind
def test_a_mean_over_each_micro_batch(method: str, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The classic: every micro-batch divides by its own tokens, pairs or rows."""

    def own_mean(elements: Tensor, weights: Tensor) -> Tensor:
        return torch.where(weights != 0, elements * weights, 0.0).sum() / weights.sum()

    monkeypatch.setattr(update, "weighted_sum", own_mean)
    assert notices("I1", method, models)


@each_kind
@pytest.mark.parametrize("id", ["I1", "I3"])
def test_packed_rows_that_see_each_other(id: str, method: str, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_borders(*args: object, cu_seq_lens_q: object = None, **options: object) -> object:
        return attend(*args, **options)

    attend = attention.attend
    attention.AttentionInterface.register(attention.NAME, without_borders)
    try:
        assert notices(id, method, models)
    finally:
        attention.AttentionInterface.register(attention.NAME, attend)


@each_kind
def test_positions_that_count_padding(method: str, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotary positions are relative, so the attention alone would not show it: the mask forgets the padding, too."""
    decode = packing._decode_padded

    def unmasked(decoder: nn.Module, batch: Batch, options: packing.Options) -> Any:
        return decode(decoder, batch.fill(attention_mask=every(batch)), options)

    monkeypatch.setattr(packing, "_decode_padded", unmasked)
    assert notices("I3, left", method, models)


@pytest.mark.parametrize("method", ["sft", "rm", "ppo, policy at temperature 0.5"])  # KTO learns from every second row
def test_rows_that_share_a_token_too_many(method: str, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = packing._shared_tokens

    def more(batch: Batch) -> Tensor:
        count = shared(batch)
        return count + (count > 0)

    monkeypatch.setattr(packing, "_shared_tokens", more)
    assert notices("I3", method, models)


def every(batch: Batch) -> Tensor:
    return torch.ones_like(batch.attention_mask)


@pytest.mark.parametrize("method", ["sft", "dpo", "ppo, policy at temperature 0.5"])
def test_a_chunk_that_overwrites_the_one_before(method: str, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "_add_product", lambda total, a, b: total.copy_(a @ b))
    assert notices("I4", method, models)


def test_a_temperature_that_is_forgotten(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = head._Options
    monkeypatch.setattr(head, "_Options", lambda logit_map, inverse, *rest: options(logit_map, 1.0, *rest))
    assert notices("I4", "ppo, policy at temperature 0.5", models)
    assert not notices("I4", "ppo, policy at temperature 1.0", models)


@each_kind
def test_a_forward_that_is_not_the_same_twice(method: str, models: Path) -> None:
    """As dropout without its generator's state."""
    subject, calls = load_subject(METHODS[method], models), itertools.count()
    layer = subject.model.hf.base_model.layers[0].mlp
    layer.register_forward_hook(lambda module, inputs, output: output * (1 + 1e-3 * next(calls)))
    error = STATEMENTS["I5, recomputed"].check(subject, 0)
    assert error is not None and error.gradient > 1e-5


def test_an_adapter_that_stays_on(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "adapter_off", lambda model: nullcontext())
    assert notices("I7", "dpo, LoRA", models)


def test_an_old_policy_at_another_temperature(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "forward", lambda *args, temperature=1.0: members.forward(*args, temperature=1.0))
    assert notices("I7", "ppo, policy at temperature 0.5", models)


@each_kind
def test_a_weight_that_knows_its_place(method: str, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def by_place(elements: Tensor, weights: Tensor) -> Tensor:
        place = torch.linspace(0.9, 1.1, len(weights)).view(-1, *[1] * (weights.dim() - 1))
        return torch.where(weights != 0, elements * weights * place, 0.0).sum()

    monkeypatch.setattr(update, "weighted_sum", by_place)
    assert notices("I6", method, models)


@pytest.mark.parametrize(
    ("method", "module"),
    [
        ("dpo", "openrlhf.objectives.preference"),
        ("kto", "openrlhf.objectives.unpaired"),
        ("ppo, policy at temperature 1.0", "openrlhf.objectives.reinforcement"),
        ("ppo, critic", "openrlhf.objectives.reinforcement"),
    ],
)
def test_multiplying_by_the_mask(method: str, module: str, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0 · NaN is NaN. Per-token losses are guarded twice, so both guards go."""
    monkeypatch.setattr(f"{module}.zero_outside", lambda x, mask: x * mask)
    monkeypatch.setattr(update, "weighted_sum", lambda elements, weights: (elements * weights).sum())
    assert notices("I8", method, models)


@each_kind
@pytest.mark.parametrize("examples", [8, 7])
def test_a_mean_over_each_rank(method: str, examples: int, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank divides by its own tokens, and the ranks' gradients are averaged."""

    def own_mean(elements: Tensor, weights: Tensor) -> Tensor:
        return torch.where(weights != 0, elements * weights, 0.0).sum() / weights.sum() / 2

    with monkeypatch.context() as patch:
        patch.setattr(update, "weighted_sum", own_mean)
        assert two_ranks(METHODS[method], models, examples).gradient > 1e-6
    assert two_ranks(METHODS[method], models, examples).gradient < 1e-6


@pytest.mark.parametrize("kind", SAVED)
def test_weights_that_are_rounded_on_their_way_to_disk(
    kind: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = saved.save_model

    def rounded(model, folder, tokenizer):
        weights = {name: value.detach().bfloat16().float() for name, value in saved_tensors(model.hf).items()}
        save(model, folder, tokenizer, weights)

    monkeypatch.setattr(saved, "save_model", rounded)
    assert saved.error(SAVED[kind], models, tmp_path) > saved.TOLERANCE
