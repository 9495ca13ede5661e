"""Losses of the policy, one entry per token, never reduced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from openrlhf.algorithms.masked import zero_outside
from openrlhf.algorithms.registry import lookup


class PolicyLoss(NamedTuple):
    """All (B, T)."""

    loss: Tensor
    ratio: Tensor  # π/π_old, of the token or of its whole answer
    clipped: Tensor  # bool: a bound decides here; in all losses but ``cispo`` the token then gives no gradient


def ppo(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    action_mask: Tensor,
    eps_low: float,
    eps_high: float,
    dual_clip: float | None,
) -> PolicyLoss:
    """−min(ρA, clip(ρ, 1−eps_low, 1+eps_high)·A), ρ = π/π_old; for A < 0 never above −c·A. (B, T) each → (B, T).

    ``dual_clip`` is that c > 1, None for none. The log-ratio is clamped to ±20. Raises ValueError for dual_clip ≤ 1.
    Paper: Schulman et al., arXiv:1707.06347, eq. 7; two bounds: Yu et al., arXiv:2503.14476, §3.1; dual clip: Ye et
    al., arXiv:1912.09729, eq. 5.
    """
    return _clipped(_ratio(log_probs - old_log_probs), advantages, eps_low, eps_high, dual_clip)


def gspo(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    action_mask: Tensor,
    eps_low: float,
    eps_high: float,
    dual_clip: float | None,
) -> PolicyLoss:
    """As ``ppo``, with the ratio of the whole answer: ρ = exp(mean over its tokens of log π/π_old). (B, T) → (B, T).

    Its bounds are much tighter than a token's (the paper: 3e-4 and 4e-4), and its mean is over answers, each of which
    is the mean over its tokens. Paper: Zheng et al., arXiv:2507.18071, eq. 5–7.
    """
    lengths = action_mask.sum(dim=1, keepdim=True).clamp(min=1)
    mean = zero_outside(log_probs - old_log_probs, action_mask).sum(dim=1, keepdim=True) / lengths
    return _clipped(_ratio(mean).expand_as(log_probs), advantages, eps_low, eps_high, dual_clip)


def cispo(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    action_mask: Tensor,
    eps_low: float,
    eps_high: float,
    dual_clip: float | None,
) -> PolicyLoss:
    """−sg[clip(ρ, 1−eps_low, 1+eps_high)]·A·log π, sg = no gradient: the bound limits a token's weight, and no token
    loses its gradient. (B, T) each → (B, T).

    Raises ValueError for a ``dual_clip``: here nothing is unbounded. Paper: MiniMax, arXiv:2506.13585, eq. 4–5.
    """
    if dual_clip is not None:
        raise ValueError("--dual_clip bounds the losses ppo and gspo; leave it out with --policy_loss_type cispo.")
    ratio = _ratio(log_probs - old_log_probs)
    weight = ratio.detach().clamp(1.0 - eps_low, 1.0 + eps_high)
    return PolicyLoss(-weight * advantages * log_probs, ratio, weight != ratio)


def _ratio(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-20.0, 20.0).exp()


def _clipped(ratio: Tensor, advantages: Tensor, eps_low: float, eps_high: float, dual_clip: float | None) -> PolicyLoss:
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


@dataclass(frozen=True)
class Surrogate:
    """A policy loss: ``function(log_probs, old_log_probs, advantages, action_mask, eps_low, eps_high, dual_clip)``, all
    tensors (B, T), and over what its mean is."""

    function: Callable[..., PolicyLoss]
    by_sequence: bool = False  # the mean over answers of the mean over tokens, instead of the mean over all tokens


POLICY_LOSSES: dict[str, Surrogate] = {
    "ppo": Surrogate(ppo),
    "gspo": Surrogate(gspo, by_sequence=True),
    "cispo": Surrogate(cispo),
}


def find_policy_loss(name: str) -> Surrogate:
    """The registry entry called ``name``, or the function or ``Surrogate`` that ``path/file.py:name`` defines.

    Raises ValueError when there is no such name, file or function. Paper: that of the entry.
    """
    found = lookup(POLICY_LOSSES, name, "--policy_loss_type")
    return found if isinstance(found, Surrogate) else Surrogate(found)
