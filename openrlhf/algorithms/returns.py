"""Rewards per token → returns per token.

Only action tokens are steps of the process. Tokens between them (tool output, a user's turn) are passed over as if
the sequence consisted of its action tokens alone; rewards and values on them are not read.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gae(rewards: Tensor, values: Tensor, action_mask: Tensor, gamma: float, lambd: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation. All tensors (B, T); → (advantages, returns), both 0 outside ``action_mask``.

    δ_t = r_t + γ V_{t+1} − V_t, A_t = Σ_k (γλ)^k δ_{t+k}, return = A + V. The value after the last action is 0.
    Paper: Schulman et al., arXiv:1506.02438, eq. 16.
    """
    steps = _steps(action_mask)
    r, v = _compress(rewards, action_mask, steps), _compress(values, action_mask, steps)
    following = torch.nn.functional.pad(v[:, 1:], (0, 1))
    advantages = _discounted_sum(r + gamma * following - v, gamma * lambd)
    return _expand(advantages, action_mask, steps), _expand(advantages + v, action_mask, steps)


def discounted_returns(rewards: Tensor, action_mask: Tensor, gamma: float) -> Tensor:
    """Σ_{k≥t} γ^{k−t} r_k over action tokens: (B, T), (B, T) → (B, T), 0 outside ``action_mask``.

    Paper: Hu et al., arXiv:2501.03262 (the return of REINFORCE++).
    """
    steps = _steps(action_mask)
    return _expand(_discounted_sum(_compress(rewards, action_mask, steps), gamma), action_mask, steps)


def _steps(action_mask: Tensor) -> Tensor:
    """(B, T) → (B, S) bool: the same number of true entries in each row, moved to the left; S is the largest."""
    counts = action_mask.sum(dim=1, keepdim=True)
    longest = int(counts.max())
    return torch.arange(longest, device=action_mask.device) < counts


def _compress(x: Tensor, action_mask: Tensor, steps: Tensor) -> Tensor:
    """(B, T) → (B, S): the action tokens of each row in order, then zeros."""
    out = x.new_zeros(steps.shape)
    out[steps] = x[action_mask]
    return out


def _expand(x: Tensor, action_mask: Tensor, steps: Tensor) -> Tensor:
    """(B, S) → (B, T): the inverse of ``_compress``, zeros elsewhere."""
    out = x.new_zeros(action_mask.shape)
    out[action_mask] = x[steps]
    return out


def _discounted_sum(x: Tensor, factor: float) -> Tensor:
    """(B, S) → (B, S): y_s = x_s + factor · y_{s+1}."""
    columns = list(x.unbind(dim=1))
    for s in range(len(columns) - 2, -1, -1):
        columns[s] = columns[s] + factor * columns[s + 1]
    return torch.stack(columns, dim=1) if columns else x
