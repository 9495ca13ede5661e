"""Losses of language modelling, one entry per token, never reduced."""

from __future__ import annotations

from torch import Tensor


def nll(log_probs: Tensor) -> Tensor:
    """−log π(token): (B, T) → (B, T). Paper: Ouyang et al., arXiv:2203.02155, §3.1 (supervised fine-tuning)."""
    return -log_probs


def distillation(log_probs: Tensor, cross_entropy: Tensor, coef: float) -> Tensor:
    """(1 − c)·(−log π(token)) + c·(−Σ_v p_teacher(v) log π(v)): two (B, T) → (B, T).

    Papers: Hinton et al., arXiv:1503.02531, §2 at temperature 1; the forward KL of Gu et al., arXiv:2306.08543, §2.1,
    up to the teacher's entropy, which has no gradient.
    """
    return (1 - coef) * nll(log_probs) + coef * cross_entropy
