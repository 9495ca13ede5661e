"""Knowledge distillation: a student learns the answers and its teacher's distribution over every token of them."""

from __future__ import annotations

from torch import nn

from openrlhf.algorithms.language_losses import distillation, nll
from openrlhf.objectives.loss import Loss
from openrlhf.types import Batch


def kd_loss(model: nn.Module, batch: Batch, *, teacher: nn.Module, kd_coef: float, packed: bool) -> Loss:
    """(1 − c)·(−log π) + c·(cross-entropy of π under the teacher) on every action token, (B, T)."""
    scores = model(batch, packed=packed, teaching=teacher(batch, packed=packed))
    metrics = {"nll": nll(scores.log_probs.detach()), "distill": scores.cross_entropy.detach()}
    return Loss(distillation(scores.log_probs, scores.cross_entropy, kd_coef), metrics)
