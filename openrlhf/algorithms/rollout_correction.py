"""Weights for samples that another distribution drew: the engine's arithmetic differs from the trainer's, and samples
of older weights differ more.

w = π_old/μ, where μ is what the engine says it sampled from and π_old what the trainer says of the same weights. All
functions take (B, T) and give (B, T) weights without gradient, 1 outside the mask.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from openrlhf.algorithms.masked import zero_outside
from openrlhf.algorithms.registry import lookup


def tis(old_log_probs: Tensor, rollout_log_probs: Tensor, action_mask: Tensor, low: float, high: float) -> Tensor:
    """clip(w, low, high): truncated importance sampling.

    Paper: Espeholt et al., arXiv:1802.01561, §4.1 (truncated importance weights); for rollouts: Yao et al. 2025,
    fengyao.notion.site/off-policy-rl.
    """
    return _weight(old_log_probs, rollout_log_probs, action_mask).clamp(low, high).where(action_mask, 1.0)


def icepop(old_log_probs: Tensor, rollout_log_probs: Tensor, action_mask: Tensor, low: float, high: float) -> Tensor:
    """w where low ≤ w ≤ high, else 0: a token on which the two disagree too much teaches nothing.

    Paper: Ling team, arXiv:2510.18855, §3.2.
    """
    weight = _weight(old_log_probs, rollout_log_probs, action_mask)
    return weight.where((weight >= low) & (weight <= high), 0.0).where(action_mask, 1.0)


def seq_mask_tis(
    old_log_probs: Tensor, rollout_log_probs: Tensor, action_mask: Tensor, low: float, high: float
) -> Tensor:
    """w where the geometric mean of w over the answer lies in [low, high], else 0 on the whole answer.

    Paper: Zheng et al., arXiv:2507.18071, eq. 7 (the geometric mean as the ratio of an answer).
    """
    weight = _weight(old_log_probs, rollout_log_probs, action_mask)
    lengths = action_mask.sum(dim=1, keepdim=True).clamp(min=1)
    mean = (zero_outside(weight.log(), action_mask).sum(dim=1, keepdim=True) / lengths).exp()
    return weight.where((mean >= low) & (mean <= high), 0.0).where(action_mask, 1.0)


def _weight(old_log_probs: Tensor, rollout_log_probs: Tensor, action_mask: Tensor) -> Tensor:
    """π_old/μ, the log-ratio clamped to ±20."""
    return zero_outside((old_log_probs - rollout_log_probs).detach(), action_mask).clamp(-20.0, 20.0).exp()


Correction = Callable[[Tensor, Tensor, Tensor, float, float], Tensor]
ROLLOUT_CORRECTIONS: dict[str, Correction] = {"tis": tis, "icepop": icepop, "seq-mask-tis": seq_mask_tis}


def find_correction(name: str) -> Correction:
    """The registry entry called ``name``, or the function that ``path/file.py:name`` defines.

    Raises ValueError when there is no such name, file or function. Paper: that of the entry.
    """
    return lookup(ROLLOUT_CORRECTIONS, name, "--vllm_is_correction_type")
