"""From one outcome reward per sequence to one reward per token."""

from __future__ import annotations

import torch
from torch import Tensor

from openrlhf.algorithms.masked import zero_outside


def clip_rewards(rewards: Tensor, low: float, high: float) -> Tensor:
    """Rewards limited to [low, high], any shape. Raises ValueError when low > high.

    Paper: Engstrom et al., arXiv:2005.12729, §3 (reward clipping).
    """
    if low > high:
        raise ValueError(f"--reward_clip_range needs the lower bound first, got {low} {high}.")
    return rewards.clamp(low, high)


def place_on_last_token(rewards: Tensor, action_mask: Tensor) -> Tensor:
    """(B,) rewards, (B, T) mask → (B, T): each reward on the last action token of its row, 0 elsewhere.

    A row without action tokens stays 0. Paper: Ziegler et al., arXiv:1909.08593 (the reward is for the whole answer).
    """
    positions = torch.arange(action_mask.shape[1], dtype=torch.int32, device=action_mask.device)
    last = torch.where(action_mask, positions, -1).amax(dim=1, keepdim=True)
    return zero_outside(rewards.unsqueeze(1), positions == last)


def kl_penalty(kl: Tensor, coef: float, action_mask: Tensor) -> Tensor:
    """(B, T) KL in nats → (B, T) reward −coef·kl on action tokens, 0 elsewhere.

    Paper: Ziegler et al., arXiv:1909.08593, eq. 2.
    """
    return zero_outside(-coef * kl, action_mask)


def overlong_penalty(lengths: Tensor, longest: int, buffer: int, factor: float) -> Tensor:
    """(B,) answer lengths → (B,) rewards in [−factor, 0]: 0 up to ``longest`` − ``buffer`` tokens, then falling in a
    straight line to −factor at ``longest``.

    Paper: Yu et al., arXiv:2503.14476, §3.4, eq. 13 (soft overlong punishment).
    """
    return -factor * (lengths - (longest - buffer)).clamp(0, buffer) / buffer


def stop_properly(rewards: Tensor, truncated: Tensor, coef: float) -> Tensor:
    """(B,) rewards where (B,) ``truncated`` answers, cut at the length limit, count less: coef ≥ 0 multiplies their
    reward, coef < 0 replaces it.

    Paper: Hu et al. 2025, "ProRL v2" (stop-properly penalty); ProRL: arXiv:2505.24864.
    """
    return torch.where(truncated, rewards * coef if coef >= 0 else torch.full_like(rewards, coef), rewards)


def stop_turns_properly(turn_rewards: Tensor, truncated: Tensor, coef: float, action_mask: Tensor) -> Tensor:
    """``stop_properly`` for rewards in parts, (B, T): of a truncated answer, coef ≥ 0 multiplies each part, coef < 0
    replaces them all by one on the last action token.

    Paper: as ``stop_properly``, arXiv:2505.24864.
    """
    replaced = place_on_last_token(turn_rewards.new_full((len(truncated),), coef), action_mask)
    return torch.where(truncated[:, None], turn_rewards * coef if coef >= 0 else replaced, turn_rewards)
