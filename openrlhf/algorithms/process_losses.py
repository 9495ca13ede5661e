"""Losses of a process reward model: log-probabilities of the possible labels at each step, never reduced."""

from __future__ import annotations

import torch
from torch import Tensor


def step_label(log_probs: Tensor, labels: Tensor) -> Tensor:
    """−log p(label) of each step: (M, R), (M,) places among the R labels → (M,).

    Paper: Lightman et al., arXiv:2305.20050, §2.
    """
    return -log_probs.gather(1, labels.long()[:, None]).squeeze(1)


def soft_step_label(log_probs: Tensor, shares: Tensor) -> Tensor:
    """−p·log p(first) − (1 − p)·log p(second) of each step: (M, 2), (M,) shares p in [0, 1] → (M,).

    Paper: Wang et al., arXiv:2312.08935, §3.
    """
    return -(torch.stack([shares, 1 - shares], dim=1) * log_probs).sum(dim=1)
