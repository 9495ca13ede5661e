"""Engines and batches for the tests of what learns."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from certificate.engine import GradientEngine as GradientEngine
from certificate.engine import gradient as gradient
from openrlhf.config.groups import AlgorithmConfig
from openrlhf.models.causal_lm import CausalLM
from openrlhf.models.value_head import ScoreModel
from openrlhf.objectives.language import sft_loss
from openrlhf.objectives.loss import Objective
from openrlhf.objectives.reinforcement import policy_loss, value_loss
from openrlhf.types import Batch
from tests.models.helpers import build, build_scorer, make_batch

T = TypeVar("T")

# Every term of the policy loss at once.
ALGORITHM = AlgorithmConfig(
    eps_clip_low_high=(0.2, 0.3), dual_clip=1.5, use_kl_loss=True, kl_estimator="k3", entropy_loss_coef=0.02
)
TEMPERATURE, KL_COEF, VALUE_CLIP = 0.7, 0.3, 0.2


def assert_same_gradient(got: Tensor, expected: Tensor) -> None:
    """To 1e-6 of its largest entry: Transformers computes its norms in float32, whatever the model is."""
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def on_two_ranks(run: Callable[[int, Callable[[Tensor], Tensor]], T]) -> list[T]:
    """``run(rank, sum_over_ranks)`` in two threads, where the sum is really exchanged."""
    meeting = threading.Barrier(2, timeout=120)
    slots: list[Tensor] = [torch.empty(0), torch.empty(0)]

    def exchange(rank: int, x: Tensor) -> Tensor:
        slots[rank] = x
        meeting.wait(timeout=120)
        total = slots[0] + slots[1]
        meeting.wait(timeout=120)
        return total

    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(run, rank, partial(exchange, rank)) for rank in (0, 1)]
        return [call.result(timeout=60) for call in calls]


def rl_batch(lengths: tuple[int, ...] = (9, 4, 7, 9, 2, 6), seed: int = 0) -> Batch:
    """Ragged rows with gaps in the actions and every field of RL, in float64; no row begins with an action."""
    batch = make_batch(lengths, seed)
    action_mask = batch.action_mask.clone()
    action_mask[:, 0] = False
    generator = torch.Generator().manual_seed(seed + 1)

    def noise(scale: float, mean: float = 0.0) -> Tensor:
        return mean + scale * torch.randn(batch.tokens.shape, generator=generator, dtype=torch.float64)

    # Near the log-probs of the random model, so that some ratios are inside the clip range and some outside.
    return batch.fill(
        action_mask=action_mask,
        advantages=noise(1.0),
        old_log_probs=noise(0.5, -5.0),
        ref_log_probs=noise(0.5, -5.0),
        rollout_log_probs=noise(0.5, -5.0),
        values=noise(0.3),
        returns=noise(1.0),
    )


def near(batch: Batch, log_probs: Tensor) -> Batch:
    """``batch`` with old and reference log-probs a little off ``log_probs``: the clip decides here and there."""
    generator = torch.Generator().manual_seed(7)

    def noise(scale: float) -> Tensor:
        return log_probs + scale * torch.randn(log_probs.shape, generator=generator, dtype=log_probs.dtype)

    return batch.fill(old_log_probs=noise(0.3), ref_log_probs=noise(0.5), rollout_log_probs=noise(0.01))


def objective(name: str, packed: bool = False) -> Objective:
    if name == "sft":
        return partial(sft_loss, packed=packed)
    if name == "value":
        return partial(value_loss, value_clip=VALUE_CLIP, packed=packed)
    return partial(policy_loss, algorithm=ALGORITHM, temperature=TEMPERATURE, packed=packed, kl_coef=KL_COEF)


def model_of(name: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> CausalLM | ScoreModel:
    if name != "value":
        return CausalLM(build(dtype=dtype, seed=seed))
    return ScoreModel(build_scorer(dtype=dtype, seed=seed))


def batch_of(name: str, model: CausalLM | ScoreModel) -> Batch:
    batch = rl_batch()
    if isinstance(model, ScoreModel):
        with torch.no_grad():
            values = model(batch, "values")
        generator = torch.Generator().manual_seed(7)
        return batch.fill(values=values + 0.3 * torch.randn(values.shape, generator=generator, dtype=values.dtype))
    with torch.no_grad():
        return near(batch, model(batch, temperature=TEMPERATURE).log_probs)
