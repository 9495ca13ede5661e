"""Losses of language modelling, one entry per token, never reduced."""

from __future__ import annotations

from torch import Tensor


def nll(log_probs: Tensor) -> Tensor:
    """−log π(token): (B, T) → (B, T). Paper: Ouyang et al., arXiv:2203.02155, §3.1 (supervised fine-tuning)."""
    return -log_probs
