"""The order in which rows are used: a pure function of the seed, so a cursor of two numbers resumes it exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Cursor:
    """Where training stands: ``consumed`` rows of epoch ``epoch`` are used. It counts rows, neither batches nor ranks,
    so batch size and number of ranks may change on resume."""

    epoch: int = 0
    consumed: int = 0


def epoch_order(size: int, seed: int, epoch: int, shuffle: bool = True) -> list[int]:
    """The row numbers 0 … ``size`` − 1 in the order of this epoch."""
    if not shuffle:
        return list(range(size))
    generator = torch.Generator().manual_seed(seed + epoch)
    return torch.randperm(size, generator=generator).tolist()


def batches(
    size: int,
    batch_size: int,
    seed: int,
    epochs: int,
    start: Cursor = Cursor(),
    shuffle: bool = True,
    across_epochs: bool = False,
) -> Iterator[tuple[list[int], Cursor]]:
    """Batches of row numbers up to the end of epoch ``epochs`` − 1, each with the cursor that stands after it.

    Every row comes once an epoch. The last batch of an epoch holds what is left; with ``across_epochs`` it is filled
    from the next epochs, and only the very last batch may be smaller. Store the cursor once the batch is trained on.
    Raises ValueError for no rows, a batch size below 1 and a cursor from a larger data set.
    """
    if size < 1 or batch_size < 1:
        raise ValueError(f"cannot make batches of {batch_size} from {size} rows; both must be at least 1")
    if start.consumed > size:
        raise ValueError(f"the checkpoint used {start.consumed} rows of an epoch, but the data set has only {size}")
    return _batches(size, batch_size, seed, epochs, start, shuffle, across_epochs)


def _batches(
    size: int, batch_size: int, seed: int, epochs: int, start: Cursor, shuffle: bool, across_epochs: bool
) -> Iterator[tuple[list[int], Cursor]]:
    batch: list[int] = []
    consumed = start.consumed
    for epoch in range(start.epoch, epochs):
        order = epoch_order(size, seed, epoch, shuffle)
        while consumed < size:
            taken = order[consumed : consumed + batch_size - len(batch)]
            batch, consumed = batch + taken, consumed + len(taken)
            ended = consumed == size
            if len(batch) == batch_size or (ended and (not across_epochs or epoch == epochs - 1)):
                yield batch, Cursor(epoch + 1, 0) if ended else Cursor(epoch, consumed)
                batch = []
        consumed = 0
