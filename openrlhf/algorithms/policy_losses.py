"""Losses of the policy, one entry per token, never reduced."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class PolicyLoss(NamedTuple):
    """All (B, T)."""

    loss: Tensor
    ratio: Tensor  # π/π_old
    clipped: Tensor  # bool: the clipping decides here, so the token gives no gradient


def ppo(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    eps_low: float,
    eps_high: float,
    dual_clip: float | None,
) -> PolicyLoss:
    """−min(ρA, clip(ρ, 1−eps_low, 1+eps_high)·A), ρ = π/π_old; for A < 0 never above −c·A. (B, T) each → (B, T).

    ``dual_clip`` is that c > 1, None for none. The log-ratio is clamped to ±20. Raises ValueError for dual_clip ≤ 1.
    Paper: Schulman et al., arXiv:1707.06347, eq. 7; two bounds: Yu et al., arXiv:2503.14476, §3.1; dual clip: Ye et
    al., arXiv:1912.09729, eq. 5.
    """
    ratio = (log_probs - old_log_probs).clamp(-20.0, 20.0).exp()
    free, bounded = ratio * advantages, ratio.clamp(1.0 - eps_low, 1.0 + eps_high) * advantages
    surrogate, clipped = torch.minimum(free, bounded), bounded < free
    if dual_clip is not None:
        surrogate, beyond = _dual_clip(surrogate, advantages, dual_clip)
        clipped = clipped | beyond
    return PolicyLoss(-surrogate, ratio, clipped)


def _dual_clip(surrogate: Tensor, advantages: Tensor, c: float) -> tuple[Tensor, Tensor]:
    """The surrogate held at or above c·A where A < 0, and where that floor decides. Paper: arXiv:1912.09729, eq. 5."""
    if c <= 1.0:
        raise ValueError(f"--dual_clip must be greater than 1, got {c}; leave it out for plain PPO.")
    floor = c * advantages
    beyond = (advantages < 0) & (surrogate < floor)
    return torch.where(beyond, floor, surrogate), beyond


POLICY_LOSSES: dict[str, Callable[..., PolicyLoss]] = {"ppo": ppo}
