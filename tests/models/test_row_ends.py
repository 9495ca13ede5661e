"""The state at the end of each row, against whole layers over one row at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from openrlhf.config.groups import ModelConfig
from openrlhf.models import attention
from openrlhf.models.adapters import with_adapter
from openrlhf.models.experts import routers_recorded
from openrlhf.models.row_ends import FAMILIES, last_layer
from openrlhf.models.value_head import ScoreModel
from openrlhf.types import Batch
from tests.models.helpers import SIZES, build, build_scorer, make_batch

EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
OWN: dict[str, dict[str, Any]] = {
    "seed_oss": {"residual_dropout": 0.0, "attention_dropout": 0.0},
    "mistral": {"sliding_window": 3},
    "gemma3_text": {"sliding_window": 3, "layer_types": ["full_attention", "sliding_attention"]},
    "olmo3": {"sliding_window": 3, "layer_types": ["full_attention", "sliding_attention"]},
}


def scorer(family: str) -> PreTrainedModel:
    sizes = SIZES | EXPERTS | OWN.get(family, {})
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **sizes, num_labels=1)
    how = {"attn_implementation": attention.NAME, "experts_implementation": "eager"}
    return AutoModelForSequenceClassification.from_config(config, **how).double().train()


def by_hand(hf: PreTrainedModel, batch: Batch) -> Tensor:
    """Every state of every row, without padding; the score of the last."""
    rows = [hf.base_model(batch.tokens[b : b + 1, :n], use_cache=False) for b, n in enumerate(batch.lengths.tolist())]
    return torch.stack([hf.score(row.last_hidden_state[0, -1])[0] for row in rows])


def gradients(model: nn.Module, scores: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    (scores**2 + scores).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor], atol: float) -> None:
    assert a.keys() == b.keys() and a
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


def tokens_in_last_feed_forward(model: ScoreModel, batch: Batch, packed: bool) -> int:
    layers = model.hf.base_model.get_submodule("layers")
    feed_forward = layers[-1].mlp
    original, seen = feed_forward.forward, []

    def counted(states: Tensor) -> Any:
        seen.append(states.shape[:-1].numel())
        return original(states)

    feed_forward.forward = counted
    model(batch, packed=packed)
    feed_forward.forward = original
    (count,) = seen
    return count


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_each_family(family: str, packed: bool) -> None:
    hf, batch = scorer(family), make_batch()
    model = ScoreModel(hf)
    want, got = by_hand(hf, batch), model(batch, packed=packed)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    # Transformers' norms work in float32 whatever the model's type, so gradients are rounded to it here and there.
    expected = gradients(hf, want)
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    assert_same(gradients(hf, model(batch, packed=packed)), expected, atol=1e-6 * max(scale, 1.0))
    assert tokens_in_last_feed_forward(model, batch, packed) == len(batch)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_with_gradient_checkpointing(packed: bool, reentrant: bool) -> None:
    hf, batch = build_scorer(), make_batch()
    expected = gradients(hf, by_hand(hf, batch))
    hf.gradient_checkpointing_enable({"use_reentrant": reentrant})
    hf.enable_input_require_grads()
    assert_same(gradients(hf, ScoreModel(hf)(batch, packed=packed)), expected, atol=1e-10)
    assert all(layer.gradient_checkpointing for layer in hf.model.layers)  # as it was


@pytest.mark.parametrize("packed", [False, True])
def test_with_an_adapter(packed: bool) -> None:
    model, batch = ScoreModel(build_scorer()), make_batch()
    with_adapter(model, ModelConfig(pretrain="", lora_rank=2, target_modules=("all-linear",)))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    expected = gradients(model, by_hand(model.hf, batch))
    assert_same(gradients(model, model(batch, packed=packed)), expected, atol=1e-9)
    assert tokens_in_last_feed_forward(model, batch, packed) == len(batch)


def test_rows_without_padding() -> None:
    """There is no mask then."""
    hf, batch = build_scorer(), make_batch((5, 5, 5))
    assert_same(gradients(hf, ScoreModel(hf)(batch)), gradients(hf, by_hand(hf, batch)), atol=1e-10)


def test_empty_rows_in_a_packed_batch_score_zero_and_change_nothing() -> None:
    hf, batch = build_scorer(), make_batch((4, 0, 6, 0))
    model = ScoreModel(hf)
    scores = model(batch, packed=True)
    alone = by_hand(hf, batch.select([0, 2]))
    torch.testing.assert_close(scores[[0, 2]], alone, rtol=0, atol=1e-10)
    assert scores[[1, 3]].tolist() == [0, 0]
    assert_same(gradients(hf, model(batch, packed=True)), gradients(hf, alone), atol=1e-10)


def test_frozen_and_in_float32_as_close_as_whole_layers() -> None:
    hf, batch = build_scorer(torch.float32).eval(), make_batch()
    with torch.no_grad():
        torch.testing.assert_close(ScoreModel(hf)(batch), by_hand(hf, batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_whole_layers_where_somebody_hooked_himself_in(packed: bool) -> None:
    hf, batch = build_scorer(), make_batch()
    runs: list[int] = []
    hf.model.layers[-1].self_attn.q_proj.register_forward_hook(lambda *_: runs.append(1))
    assert last_layer(hf.model) is None
    scores = ScoreModel(hf)(batch, packed=packed)
    assert runs == [1]
    torch.testing.assert_close(scores, by_hand(hf, batch), rtol=0, atol=1e-10)


def test_whole_layers_for_other_families_and_other_attention() -> None:
    assert last_layer(build("cohere").get_decoder()) is None
    hf = build_scorer()
    hf.set_attn_implementation("eager")
    assert last_layer(hf.model) is None


def test_routers_that_are_recorded_see_every_token() -> None:
    hf, batch = scorer("mixtral"), make_batch()
    hf.config.router_aux_loss_coef = 0.01
    model = ScoreModel(hf)
    with routers_recorded(model) as balances:
        scores = model(batch, packed=True)
    torch.testing.assert_close(scores, by_hand(hf, batch), rtol=0, atol=1e-10)
    assert len(balances) == 1
    assert torch.equal(balances[0].elements != 0, batch.attention_mask)
