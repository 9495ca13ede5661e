"""Batches of pairs and their steps, for the tests of objectives that compare two answers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from openrlhf.objectives.loss import Objective
from openrlhf.training.update import optimizer_step, pair_mean
from openrlhf.types import Batch, Metrics
from tests.models.helpers import make_batch
from tests.training.helpers import GradientEngine, on_two_ranks

# Prompt and answer lengths, chosen and rejected by turns; the two prompts of a pair may differ, as after truncation.
PROMPTS = (2, 2, 3, 1, 1, 1, 4, 2)
ANSWERS = (5, 3, 1, 6, 4, 4, 2, 5)


def pair_batch() -> Batch:
    """Four pairs of ragged rows with reference log-probs everywhere, and a margin on the chosen rows. float64."""
    lengths = tuple(p + a for p, a in zip(PROMPTS, ANSWERS, strict=True))
    batch = make_batch(lengths, seed=3)
    answer = torch.arange(max(lengths)) >= torch.tensor(PROMPTS)[:, None]
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(batch.tokens.shape, generator=generator, dtype=torch.float64)
    return batch.fill(
        action_mask=batch.attention_mask & answer,
        ref_log_probs=noise - 5,
        rewards=torch.tensor([0.5, 0.0, 2.0, 0.0, 0.0, 0.0, -1.0, 0.0]),
    )


def one_step(model: nn.Module, batch: Batch, objective: Objective, rows: int = 99) -> tuple[Metrics, Tensor]:
    """Metrics and gradient of one mini-batch in micro-batches of so many rows."""
    engine = GradientEngine(model)
    metrics = optimizer_step(engine, batch, objective, rows, pair_mean)
    return metrics, engine.gradients[0]


def two_rank_step(models: tuple[nn.Module, nn.Module], batch: Batch, objective: Objective) -> tuple[Metrics, Tensor]:
    """The same on two ranks, each with half of the pairs and a pair without loss where they do not divide."""
    shared = batch.with_fillers(4)
    half = len(shared) // 2

    def rank(number: int, sum_over_ranks):
        engine = GradientEngine(models[number], sum_over_ranks)
        rows = shared.select(slice(number * half, (number + 1) * half))
        return optimizer_step(engine, rows, objective, 2, pair_mean), engine.gradients[0]

    (metrics, one), (_, two) = on_two_ranks(rank)
    return metrics, one + two


def assert_same(got: tuple[Metrics, Tensor], expected: tuple[Metrics, Tensor]) -> None:
    """Equal gradients, and equal metrics but for the norm, which a fake rank cannot know."""
    assert expected[1].norm() > 1e-2
    torch.testing.assert_close(got[1], expected[1], rtol=1e-9, atol=1e-10)
    names = expected[0].keys() - {"grad_norm"}  # the others are summed in float32
    assert {n: got[0][n] for n in names} == pytest.approx({n: expected[0][n] for n in names}, rel=1e-5, abs=1e-6)
