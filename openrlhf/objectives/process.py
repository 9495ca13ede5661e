"""The process reward model's objective: the right label at each step."""

from __future__ import annotations

from torch import nn

from openrlhf.algorithms.process_losses import soft_step_label, step_label
from openrlhf.models.packing import spread
from openrlhf.objectives.loss import Loss
from openrlhf.types import Batch, present


def step_loss(model: nn.Module, batch: Batch, *, tokens: tuple[int, ...] | None, soft: bool, packed: bool) -> Loss:
    """Cross-entropy (B, T) at the marked tokens, between a ``StepModel`` and ``labels``.

    Hard labels are places among ``tokens`` (ids of the vocabulary without them). A soft label p stands for p on the
    first of two ``tokens`` and 1 − p on the second.
    """
    mask = batch.action_mask
    log_probs = model(batch, tokens=tokens, packed=packed)  # (M, R)
    labels = present(batch.labels, "labels")[mask]
    if soft:
        elements = soft_step_label(log_probs, labels)
        right = log_probs.argmax(dim=1) == (labels < 0.5).long()
    else:
        elements = step_label(log_probs, labels)
        right = log_probs.argmax(dim=1) == labels.long()
    return Loss(spread(elements, mask), {"accuracy": spread(right.float(), mask)})
