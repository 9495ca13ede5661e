"""The reward model's objective: which of two answers is better."""

from __future__ import annotations

import torch
from torch import nn

from openrlhf.algorithms.reward_losses import REWARD_LOSSES
from openrlhf.objectives.loss import Loss
from openrlhf.objectives.pairs import on_chosen_rows, split_pairs
from openrlhf.types import Batch, present


def pair_loss(model: nn.Module, batch: Batch, *, loss: str, margin: bool, fp32: bool, packed: bool) -> Loss:
    """The loss of each pair, (B,), on its chosen row. ``loss`` is a name of REWARD_LOSSES.

    ``margin``, for ``sigmoid`` alone, takes the margins of the pairs from ``rewards`` of the chosen rows. ``fp32``
    casts scores of a lower precision to float32 before the loss. Raises ValueError for a margin without ``rewards``
    and for an odd number of rows.
    """
    scores = model(batch, "scores", packed=packed)
    if fp32:
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    chosen, rejected = split_pairs(scores)
    margins = split_pairs(present(batch.rewards, "rewards"))[:1] if margin else ()
    elements = REWARD_LOSSES[loss](chosen, rejected, *margins)
    metrics = {
        "accuracy": chosen > rejected,
        "chosen_reward": chosen.detach(),
        "rejected_reward": rejected.detach(),
    }
    return Loss(on_chosen_rows(elements), {name: on_chosen_rows(values) for name, values in metrics.items()})
