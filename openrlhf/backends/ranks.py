"""Work on many rows divided among the processes of a launcher; without a launcher, done here."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TypeVar

import torch.distributed as dist
from tqdm import tqdm

T = TypeVar("T")
R = TypeVar("R")


def over_ranks(parts: Sequence[T], work: Callable[[int, T], list[R]], says: str) -> list[R]:
    """The results of ``work(k, parts[k])``, one after another in the order of the parts. On ranks above 0: nothing.

    Rank r does the parts r, r + ranks, …. All ranks work equally often, as a model needs whose weights are divided
    among them: where a part is missing the first is done again, for nothing. ``says`` names the work on the bar that
    rank 0 shows. The process group must be there already.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    done: list[list[R]] = []
    for turn in tqdm(range(-(-len(parts) // world)), desc=says, unit="batch", disable=rank > 0):
        k = turn * world + rank
        done.append(work(k, parts[k]) if k < len(parts) else work(0, parts[0])[:0])
    if world == 1:
        return list(chain.from_iterable(done))
    every: list[list[list[R]]] = [[] for _ in range(world)]
    dist.gather_object(done, every if rank == 0 else None)
    turns = zip(*every, strict=True) if rank == 0 else ()
    return [result for turn in turns for part in turn for result in part]
