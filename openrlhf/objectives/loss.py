"""What an objective is: one micro-batch through the model → a loss per element, and metrics of the same shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from openrlhf.types import Batch


@dataclass
class Loss:
    """``elements`` and every metric have the shape of the batch's ``loss_weights``, (B, T) or (B,).

    Nothing is reduced here: the update weighs and sums both with the same weights.
    """

    elements: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


Objective = Callable[[nn.Module, Batch], Loss]
