"""Losses of the critic, one entry per token, never reduced."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """½ max((V − R)², (V_old + clip(V − V_old, ±clip) − R)²), or ½ (V − R)² without ``clip``. (B, T) each → (B, T).

    Paper: Engstrom et al., arXiv:2005.12729, §3 (value function clipping); arXiv:1506.02438 for the target R.
    """
    errors = (values - returns).square()
    if clip is None:
        return 0.5 * errors
    bounded = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum(errors, (bounded - returns).square())
