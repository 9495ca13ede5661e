"""The balance of routers, against Transformers' loss of single rows, and whether anything but the rows changes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.models.mixtral import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.models.qwen3_moe import Qwen3MoeConfig

from openrlhf.models import attention
from openrlhf.models.causal_lm import CausalLM
from openrlhf.models.experts import routers_recorded
from openrlhf.models.value_head import ScoreModel
from openrlhf.objectives.balance import balanced, each_labelled, each_pair, each_row, each_token
from openrlhf.objectives.language import sft_loss
from openrlhf.objectives.loss import Loss
from openrlhf.types import Batch
from tests.models.helpers import SIZES, build, make_batch

MIXTURES = {
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "qwen3 moe": Qwen3MoeConfig(**SIZES, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=16),
}
BATCH = make_batch()


@pytest.fixture(params=MIXTURES)
def config(request: pytest.FixtureRequest) -> Any:
    return MIXTURES[request.param]


def mixture(config: Any, head: Any = AutoModelForCausalLM) -> Any:
    torch.manual_seed(0)
    return head.from_config(config, attn_implementation=attention.NAME, experts_implementation="eager").double()


def of_single_rows(hf: nn.Module, batch: Batch, config: Any) -> Tensor:
    """(B,): each row alone through Transformers, its loss of each layer, and their mean."""
    means = []
    for tokens, mask in zip(batch.tokens, batch.attention_mask, strict=True):
        routers = hf.base_model(input_ids=tokens[mask][None], output_router_logits=True, use_cache=False).router_logits
        experts, top_k = routers[0].shape[-1], config.num_experts_per_tok
        means.append(torch.stack([load_balancing_loss_func((r,), experts, top_k) for r in routers]).mean())
    return torch.stack(means)


@pytest.mark.parametrize("packed", [False, True])
def test_the_mean_over_a_row_is_transformers_loss_of_that_row(config: Any, packed: bool) -> None:
    model = CausalLM(mixture(config))
    with routers_recorded(model) as balances:
        model(BATCH, packed=packed)
    (balance,) = balances
    rows = each_row(balance)
    expected = of_single_rows(model.hf, BATCH, config)
    torch.testing.assert_close(rows.double(), expected.double(), rtol=1e-5, atol=1e-6)
    assert not balance.elements[~BATCH.attention_mask].any()
    trained = [p for name, p in model.hf.named_parameters() if "lm_head" not in name]
    weights = torch.arange(1.0, len(BATCH) + 1)
    ours = torch.autograd.grad((rows * weights).sum(), trained, allow_unused=True)
    theirs = torch.autograd.grad((expected * weights).sum(), trained, allow_unused=True)
    assert any(g is not None and float(g.abs().max()) > 1e-4 for g in theirs)
    for a, b in zip(ours, theirs, strict=True):
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def gradients(model: nn.Module, parts: list[Batch], objective: Callable[..., Loss]) -> list[Tensor]:
    model.zero_grad()
    for part in parts:
        assert part.loss_weights is not None
        (objective(model, part).elements * part.loss_weights).sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("recomputed", [False, True])
def test_micro_batches_packing_and_recomputation_do_not_change_the_gradient(
    config: Any, packed: bool, recomputed: bool
) -> None:
    model = CausalLM(mixture(config)).train()
    if recomputed:
        model.hf.gradient_checkpointing_enable({"use_reentrant": False})
    batch = BATCH.fill(loss_weights=BATCH.action_mask / BATCH.action_mask.sum())

    def of(packed: bool, coef: float) -> Callable[..., Loss]:
        return balanced(lambda model, rows: sft_loss(model, rows, packed=packed), coef, each_token)

    whole = gradients(model, [batch], of(False, 0.5))
    micro_batches = [batch.select([row, row + 1]) for row in range(0, len(batch), 2)]
    parts = gradients(model, micro_batches, of(packed, 0.5))
    without = gradients(model, [batch], of(False, 0.0))
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)  # routers are scored in float32
    assert max(float((a - b).abs().max()) for a, b in zip(whole, without, strict=True)) > 1e-4


def test_the_loss_grows_by_coef_times_the_metric(config: Any) -> None:
    model = CausalLM(mixture(config))
    plain = sft_loss(model, BATCH, packed=False)
    both = balanced(lambda m, b: sft_loss(m, b, packed=False), 0.25, each_token)(model, BATCH)
    aux = both.metrics["aux_loss"]
    torch.testing.assert_close(both.elements, plain.elements + 0.25 * aux)
    assert not aux.requires_grad
    attended = aux[BATCH.attention_mask]
    # top_k where the tokens are shared evenly; never above the number of experts
    assert float(attended.min()) > 0 and float(attended.max()) <= 6


def test_losses_of_rows_and_pairs(config: Any) -> None:
    scorer = ScoreModel(mixture(config, AutoModelForSequenceClassification))
    rows = BATCH.select([0, 1, 2, 3])
    with routers_recorded(scorer) as balances:
        scorer(rows)
    (balance,) = balances
    a, b, c, d = each_row(balance)
    torch.testing.assert_close(each_pair(balance), torch.stack([(a + b) / 2, 0 * a, (c + d) / 2, 0 * a]))
    torch.testing.assert_close(each_labelled(balance), torch.stack([a, 0 * a, b, 0 * a, c, 0 * a, d, 0 * a]))


def test_only_the_model_that_learns_is_recorded(config: Any) -> None:
    model, teacher = CausalLM(mixture(config)), CausalLM(mixture(config))
    with routers_recorded(model) as balances:
        teacher(BATCH)
        assert balances == []
        model(BATCH)
    model(BATCH)
    assert len(balances) == 1


def test_a_model_without_experts_is_refused() -> None:
    objective = balanced(lambda m, b: sft_loss(m, b, packed=False), 0.1, each_token)
    with pytest.raises(ValueError, match=r"^--aux_loss_coef balances experts, but .* qwen3 has none"):
        objective(CausalLM(build("qwen3")), BATCH)
