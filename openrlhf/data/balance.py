"""Which items go together so that their tokens add up evenly: a rank's share, a micro-batch. Only lengths count.

Both problems are NP-hard and need no more than sorting here: hundreds of items a share come within 1 % of even.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence


def even_shares(lengths: Sequence[int], shares: int, run: int) -> list[list[int]]:
    """The numbers of the items of each share, run after run of ``run`` items; in each run as many items a share, and as
    nearly as many tokens as largest-first finds (Graham, SIAM J. Appl. Math. 17, 1969).

    Raises ValueError when a run does not divide.
    """
    out: list[list[int]] = [[] for _ in range(shares)]
    for start in range(0, len(lengths), run):
        parts = _even(lengths[start : start + run], shares)
        for share, part in zip(out, parts, strict=True):
            share.extend(start + item for item in part)
    return out


def _even(lengths: Sequence[int], shares: int) -> list[list[int]]:
    size, rest = divmod(len(lengths), shares)
    if rest:
        raise ValueError(f"{len(lengths)} items cannot be {shares} shares of as many items each")
    parts: list[list[int]] = [[] for _ in range(shares)]
    loads = [(0, share) for share in range(shares)]
    for item in _longest_first(lengths):
        load, share = heapq.heappop(loads)
        parts[share].append(item)
        if len(parts[share]) < size:
            heapq.heappush(loads, (load + lengths[item], share))
    return [sorted(part) for part in parts]


def packed_bins(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Items laid end to end, at most ``capacity`` tokens a bin; a longer item has a bin of its own.

    Best fit decreasing: at most 11/9 of the fewest bins and a few (Johnson et al., SIAM J. Comput. 3, 1974).
    """
    bins: list[list[int]] = []
    space: list[tuple[int, int]] = []  # what is free in each bin, and its number, least first
    for item in _longest_first(lengths):
        tightest = bisect_left(space, (lengths[item], -1))
        if tightest == len(space):
            free, number = capacity, len(bins)
            bins.append([])
        else:
            free, number = space.pop(tightest)
        bins[number].append(item)
        insort(space, (free - lengths[item], number))
    return bins


def padded_bins(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Items padded to the longest beside them, at most ``capacity`` tokens and padding a bin; a longer item has a bin
    of its own."""
    bins: list[list[int]] = []
    for item in _longest_first(lengths):
        if bins and (len(bins[-1]) + 1) * lengths[bins[-1][0]] <= capacity:
            bins[-1].append(item)
        else:
            bins.append([item])
    return bins


def more_bins(bins: Sequence[list[int]], number: int) -> list[list[int]]:
    """At least ``number`` bins of the same items: those with most of them are cut in two.

    Raises ValueError for fewer items.
    """
    out = [list(bin) for bin in bins]
    if number > sum(map(len, out)):
        raise ValueError(f"{sum(map(len, out))} items cannot be {number} bins without an empty one")
    while len(out) < number:
        fullest = max(out, key=len)
        out.append(fullest[1::2])
        del fullest[1::2]
    return out


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
