"""How evenly samples are divided among ranks and how full packed micro-batches are, and how long the plan takes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch

from benchmarks.machine import describe
from benchmarks.table import markdown
from openrlhf.data.balance import even_shares, packed_bins

SAMPLES, LONGEST, REPEATS = 16384, 32768, 5
RANKS = (8, 64)
FILL_GOAL, LOAD_GOAL, TIME_GOAL_S = 0.97, 1.03, 0.050
LENGTHS = {  # median, σ of the logarithm, tokens in a micro-batch
    "grade-school problems (lognormal, median 180, σ 0.4)": (180, 0.4, 4096),
    "long chains of thought (lognormal, median 4,096, σ 1)": (4096, 1.0, LONGEST),
}
T = TypeVar("T")


def planning_table() -> str:
    rows = [row for name, lengths in LENGTHS.items() for row in planned(name, *lengths)]
    intro = f"""\
## Shares and packed micro-batches

{describe(("torch",))}.
{SAMPLES:,} samples of at most {LONGEST:,} tokens. Shares: tokens of the fullest rank over the mean, one mini-batch. \
Micro-batches: real tokens over room, and the room that first fit, in the order of the samples, would need. Time: CPU, \
the least of {REPEATS}."""
    return intro + "\n\n" + markdown(("what", "quality", "without a plan", "goal", "CPU", "goal", "met"), rows)


def planned(name: str, median: float, sigma: float, capacity: int) -> list[list[str]]:
    generator = torch.Generator().manual_seed(0)
    drawn = median * torch.exp(sigma * torch.randn(SAMPLES, generator=generator))
    lengths = drawn.clamp(16, LONGEST).long().tolist()
    rows = []
    for ranks in RANKS:
        shares, seconds = timed(partial(even_shares, lengths, ranks, SAMPLES))
        ratio = load([sum(lengths[item] for item in share) for share in shares])
        dealt = load([sum(lengths[rank::ranks]) for rank in range(ranks)])
        met = ratio <= LOAD_GOAL and seconds <= TIME_GOAL_S
        rows.append(row(f"{name}: {ranks} ranks", f"{ratio:.4f}", f"{dealt:.4f}", f"≤ {LOAD_GOAL}", seconds, met))
    bins, seconds = timed(lambda: packed_bins(lengths, capacity))
    full, plain = (sum(lengths) / (capacity * number) for number in (len(bins), first_fit(lengths, capacity)))
    met = full >= FILL_GOAL and seconds <= TIME_GOAL_S
    what = f"{name}: micro-batches of {capacity:,} tokens"
    return [*rows, row(what, f"{full:.2%}", f"{plain:.2%}", f"≥ {FILL_GOAL:.0%}", seconds, met)]


def row(what: str, quality: str, plain: str, goal: str, seconds: float, met: bool) -> list[str]:
    limit = f"≤ {1000 * TIME_GOAL_S:.0f} ms"
    return [what, quality, plain, goal, f"{1000 * seconds:.0f} ms", limit, "yes" if met else "no"]


def load(tokens: Sequence[int]) -> float:
    return max(tokens) * len(tokens) / sum(tokens)


def first_fit(lengths: Sequence[int], capacity: int) -> int:
    """Bins that one needs when each item goes into the first in which it fits."""
    free: list[int] = []
    for length in lengths:
        at = next((i for i, space in enumerate(free) if space >= length), None)
        if at is None:
            free.append(capacity - length)
        else:
            free[at] -= length
    return len(free)


def timed(plan: Callable[[], T]) -> tuple[T, float]:
    least = math.inf
    for _ in range(REPEATS):
        began = time.process_time()
        made = plan()
        least = min(least, time.process_time() - began)
    return made, least
