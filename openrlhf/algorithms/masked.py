"""Means over the entries that count: by mask, by group, and as loss weights.

Entries outside a mask are replaced before any arithmetic, never multiplied by 0, so NaN in them changes nothing.
Statistics that normalise are accumulated in float64: group rewards that are all equal then have exactly their own
mean, instead of a rounding error that the division by a tiny standard deviation would blow up.
"""

from __future__ import annotations

import torch
from torch import Tensor


def zero_outside(x: Tensor, mask: Tensor) -> Tensor:
    """``x`` where ``mask`` is true, 0 elsewhere, NaN or not. Shapes: both the same, or ready to broadcast."""
    return torch.where(mask, x, 0.0)


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Scalar: Σ x over the true entries of ``mask`` (same shape)."""
    return zero_outside(x, mask).sum()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Scalar: Σ x / count over the true entries of ``mask`` (same shape); 0 when none is true."""
    return masked_sum(x, mask) / mask.sum().clamp(min=1)


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True, scale: bool = True) -> Tensor:
    """(x − mean) / √max(variance, 1e-8) over all true entries of ``mask`` together; 0 outside. Shape of ``x``.

    The variance is the population's. ``shift_mean=False`` adds the mean back, ``scale=False`` does not divide.
    Paper: Engstrom et al., arXiv:2005.12729 (advantage normalisation); Hu et al., arXiv:2501.03262 (over the batch).
    """
    mean = masked_mean(x.double(), mask)
    centred = zero_outside(x.double() - mean, mask)
    variance = masked_mean(centred.square(), mask)
    scaled = centred * variance.clamp(min=1e-8).rsqrt() if scale else centred
    return (scaled if shift_mean else zero_outside(scaled + mean, mask)).to(x.dtype)


def group_mean(x: Tensor, groups: Tensor, members: Tensor | None = None) -> Tensor:
    """(B,): for each row the mean of ``x`` (B,) over the rows of its group (``groups`` (B,), any integers).

    Rows where ``members`` (B,) is false are not counted, but still receive the mean of their group (0 if it is empty).
    Paper: Shao et al., arXiv:2402.03300, §4.1 (the group's mean as baseline).
    """
    counted = _everyone(x) if members is None else members
    return (_group_sum(x, groups, counted) / _group_count(groups, counted).clamp(min=1)).to(x.dtype)


def group_std(x: Tensor, groups: Tensor, members: Tensor | None = None) -> Tensor:
    """(B,): for each row the unbiased standard deviation of its group; 0 for a group of one.

    Arguments as for ``group_mean``. Paper: Shao et al., arXiv:2402.03300, §4.1.
    """
    counted = _everyone(x) if members is None else members
    deviations = x - group_mean(x.double(), groups, counted)
    degrees = (_group_count(groups, counted) - 1).clamp(min=1)
    return (_group_sum(deviations.square(), groups, counted) / degrees).sqrt().to(x.dtype)


def leave_one_out_mean(x: Tensor, groups: Tensor, members: Tensor | None = None) -> Tensor:
    """(B,): for each row the mean of ``x`` over the *other* rows of its group.

    A row without others receives its own value: nothing to compare with, so its advantage is 0.
    Arguments as for ``group_mean``. Paper: Ahmadian et al., arXiv:2402.14740, §2.2.
    """
    counted = _everyone(x) if members is None else members
    own = zero_outside(x, counted)
    others = _group_count(groups, counted) - counted.double()
    mean = (_group_sum(x, groups, counted) - own) / others  # not a number where there are none, and then not taken
    return torch.where(others > 0, mean, own).to(x.dtype)


def token_mean_weights(mask: Tensor, total: Tensor | None = None) -> Tensor:
    """(B, T) float32: 1/``total`` on each true entry of ``mask`` (B, T), 0 elsewhere. Every token counts the same.

    ``total``: true entries in the whole mini-batch on all ranks; default: those of this mask, so the weights sum to 1.
    Paper: Yu et al., arXiv:2503.14476, §3.3 (token-level loss).
    """
    count = mask.sum() if total is None else total
    return mask.float() / count.clamp(min=1)


def sequence_mean_weights(mask: Tensor, sequences: Tensor | None = None) -> Tensor:
    """(B, T) float32: 1/(tokens of the row · ``sequences``) on each true entry of ``mask``. Every row counts the same.

    ``sequences``: rows with at least one true entry in the whole mini-batch on all ranks; default: those of this mask.
    Paper: Shao et al., arXiv:2402.03300, eq. 3 (mean over tokens, then over outputs).
    """
    lengths = mask.sum(dim=1, keepdim=True)
    count = (lengths > 0).sum() if sequences is None else sequences
    return mask.float() / lengths.clamp(min=1) / count.clamp(min=1)


def _everyone(x: Tensor) -> Tensor:
    return torch.ones_like(x, dtype=torch.bool)


def _group_sum(x: Tensor, groups: Tensor, members: Tensor) -> Tensor:
    """(B,) float64: for each row the sum over the members of its group."""
    _, index = torch.unique(groups, return_inverse=True)
    kept = zero_outside(x.double(), members)
    return torch.zeros_like(kept).index_add(0, index, kept)[index]


def _group_count(groups: Tensor, members: Tensor) -> Tensor:
    """(B,) float64: for each row the number of members of its group."""
    return _group_sum(members, groups, members)
