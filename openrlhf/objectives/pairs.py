"""Batches of pairs: the even rows are chosen, each odd row is the rejected answer to the row before it.

What a pair has as a whole, its loss and its metrics, stands on its chosen row; the rejected row has 0 and no weight.
"""

from __future__ import annotations

import torch
from torch import Tensor


def split_pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    """(2P, …) → chosen (P, …), rejected (P, …). Raises ValueError for an odd number of rows."""
    if len(x) % 2:
        raise ValueError(f"a batch of pairs has an even number of rows, got {len(x)}: a pair was cut in two")
    return x[0::2], x[1::2]


def on_chosen_rows(x: Tensor) -> Tensor:
    """(P,) → (2P,): each entry on the chosen row of its pair, 0 on the rejected row."""
    return torch.stack([x, torch.zeros_like(x)], dim=1).flatten()
