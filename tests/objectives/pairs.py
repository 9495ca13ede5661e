"""Batches of pairs and their steps, for the tests of objectives that compare two answers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openrlhf.objectives.loss import Objective
from openrlhf.training.update import optimizer_step, pair_mean
from openrlhf.types import Batch, Metrics
from tests.models.helpers import make_batch
from tests.training.helpers import GradientEngine

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
