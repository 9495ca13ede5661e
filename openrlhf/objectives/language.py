"""Next-token likelihood: supervised fine-tuning and continued pre-training."""

from __future__ import annotations

from torch import nn

from openrlhf.algorithms.language_losses import nll
from openrlhf.objectives.loss import Loss
from openrlhf.types import Batch


def sft_loss(model: nn.Module, batch: Batch, *, packed: bool) -> Loss:
    """−log π(token t) on every action token, (B, T)."""
    scores = model(batch, packed=packed)
    return Loss(nll(scores.log_probs))
