"""Losses of preference learning from single labelled answers, one entry per answer, never reduced."""

from __future__ import annotations

import torch
from torch import Tensor


def kto(
    log_ratios: Tensor,
    baseline: Tensor,
    desirable: Tensor,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> Tensor:
    """Of a desirable answer w_d·(1 − σ(β(x − z))), of an undesirable one w_u·(1 − σ(β(z − x))): (N,) → (N,).

    x is ``log_ratios``, log π − log π_ref summed over the tokens of the answer. z is ``baseline`` (N,), the KL from
    which gains and losses count (``kl_baseline``), the same for all answers of a mini-batch and without gradient.
    ``desirable`` (N,) bool is the label.

    Paper: Ethayarajh et al., arXiv:2402.01306: λ_y − v(x, y), its z_0 being z and its λ_D, λ_U being w_d, w_u.
    """
    gain = torch.where(desirable, log_ratios - baseline, baseline - log_ratios)
    weight = torch.where(desirable, desirable_weight, undesirable_weight)
    return weight * torch.sigmoid(-beta * gain)  # 1 − σ(y) = σ(−y), which keeps its digits where σ(y) is near 1


def kl_baseline(log_ratio_sum: Tensor, answers: Tensor) -> Tensor:
    """max(0, mean of log π − log π_ref) over answers to other prompts, from their sum and number; 0 for none.

    Paper: Ethayarajh et al., arXiv:2402.01306, the estimate of z_0. The single estimates may be negative, a KL is not.
    """
    return (log_ratio_sum / answers.clamp(min=1)).clamp(min=0)
