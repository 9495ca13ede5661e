"""Rewards per token → returns per token.

Only action tokens are steps of the process. Tokens between them (tool output, a user's turn) are passed over as if
the sequence consisted of its action tokens alone; rewards and values on them are not read.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from openrlhf.algorithms.masked import zero_outside


def gae(rewards: Tensor, values: Tensor, action_mask: Tensor, gamma: float, lambd: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation. All tensors (B, T); → (advantages, returns), both 0 outside ``action_mask``.

    δ_t = r_t + γ V_{t+1} − V_t, A_t = Σ_k (γλ)^k δ_{t+k}, return = A + V. The value after the last action is 0.
    Paper: Schulman et al., arXiv:1506.02438, eq. 16.
    """
    deltas = rewards + gamma * _following(values, action_mask) - values
    advantages = discounted_returns(deltas, action_mask, gamma * lambd)
    return advantages, zero_outside(advantages + values, action_mask)


def discounted_returns(rewards: Tensor, action_mask: Tensor, gamma: float) -> Tensor:
    """Σ_{k≥t} γ^{k−t} r_k over action tokens: (B, T), (B, T) → (B, T), 0 outside ``action_mask``.

    Paper: Hu et al., arXiv:2501.03262 (the return of REINFORCE++).
    """
    sums = torch.empty_like(rewards.t(), memory_format=torch.contiguous_format)
    total = rewards.new_zeros(len(rewards))
    for t, reward, acted in _from_the_end(rewards, action_mask):
        total = torch.where(acted, reward + gamma * total, total)
        sums[t] = total
    return zero_outside(sums.t().contiguous(), action_mask)


def _following(x: Tensor, action_mask: Tensor) -> Tensor:
    """(B, T) → (B, T): for each token what ``x`` has at the next action token after it, 0 after the last."""
    following = torch.empty_like(x.t(), memory_format=torch.contiguous_format)
    found = x.new_zeros(len(x))
    for t, entry, acted in _from_the_end(x, action_mask):
        following[t] = found
        found = torch.where(acted, entry, found)
    return following.t().contiguous()


def _from_the_end(x: Tensor, action_mask: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The columns of both, the last first, and their numbers. A column is read from one place in memory."""
    columns, acted = x.t().contiguous(), action_mask.t().contiguous()
    return ((t, columns[t], acted[t]) for t in reversed(range(len(columns))))
