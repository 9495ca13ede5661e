"""Shares and bins: every item in exactly one, within the bound, and close to even."""

from __future__ import annotations

import math
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf.data.balance import even_shares, more_bins, packed_bins, padded_bins

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=40)


def flat(parts: list[list[int]]) -> list[int]:
    return sorted(chain.from_iterable(parts))


def tokens(parts: list[list[int]], lengths: list[int]) -> list[int]:
    return [sum(lengths[item] for item in part) for part in parts]


def test_shares_by_hand() -> None:
    """9 and 1 against 5 and 4 would be 10 : 9; then 2 to the lighter one."""
    assert even_shares([9, 5, 4, 2], 2, 4) == [[0, 3], [1, 2]]
    assert even_shares([1, 9, 5, 5], 2, 2) == [[1, 2], [0, 3]]  # each run of two by itself
    assert even_shares([3, 3, 3, 3], 2, 4) == [[0, 2], [1, 3]]
    with pytest.raises(ValueError, match="3 items cannot be 2 shares"):
        even_shares([1, 2, 3], 2, 4)


@given(LENGTHS, st.integers(1, 5), st.integers(1, 4))
def test_each_run_is_divided_into_as_many_items_a_share(lengths: list[int], shares: int, size: int) -> None:
    lengths, run = lengths * shares, size * shares
    parts = even_shares(lengths, shares, run)
    assert flat(parts) == list(range(len(lengths)))
    for start in range(0, len(lengths), run):
        within = [[item for item in part if start <= item < start + run] for part in parts]
        assert len({len(part) for part in within}) == 1
    assert all(part == sorted(part) for part in parts)


@given(LENGTHS, st.integers(1, 60))
def test_no_bin_overflows_but_with_a_single_item(lengths: list[int], capacity: int) -> None:
    packed, padded = packed_bins(lengths, capacity), padded_bins(lengths, capacity)
    assert flat(packed) == flat(padded) == list(range(len(lengths)))
    assert all(load <= capacity or len(part) == 1 for part, load in zip(packed, tokens(packed, lengths), strict=True))
    assert all(len(part) * max(lengths[item] for item in part) <= capacity or len(part) == 1 for part in padded)


@given(LENGTHS, st.integers(40, 90))
def test_best_fit_is_within_its_bound(lengths: list[int], capacity: int) -> None:
    """11/9 of the fewest and 4 (Johnson et al. 1974); the fewest are at least the tokens over the capacity."""
    at_least = math.ceil(sum(lengths) / capacity)
    assert len(packed_bins(lengths, capacity)) <= 11 / 9 * max(at_least, sum(n > capacity / 2 for n in lengths)) * 2 + 4


@given(LENGTHS, st.integers(1, 40))
def test_more_bins_are_none_of_them_empty(lengths: list[int], number: int) -> None:
    bins = packed_bins(lengths, 50)
    if number > len(lengths):
        with pytest.raises(ValueError, match="without an empty one"):
            more_bins(bins, number)
        return
    more = more_bins(bins, number)
    assert len(more) == max(number, len(bins)) and all(more)
    assert flat(more) == list(range(len(lengths)))


def lognormal(number: int) -> list[int]:
    """Long chains of thought: median 1,100 tokens, σ = 1, at most 32,768."""
    drawn = np.random.default_rng(0).normal(7, 1, number)
    return np.clip(np.exp(drawn), 20, 32768).astype(int).tolist()


def school_problems(number: int) -> list[int]:
    """Like GSM8K with its answers."""
    drawn = np.random.default_rng(1).normal(230, 80, number)
    return np.clip(drawn, 60, 600).astype(int).tolist()


@pytest.mark.parametrize("ranks", [8, 16, 32, 64])
@pytest.mark.parametrize("make", [lognormal, school_problems])
def test_ranks_are_even_and_bins_are_full(make, ranks: int) -> None:
    lengths = make(16384)
    loads = tokens(even_shares(lengths, ranks, len(lengths)), lengths)
    assert max(loads) * len(loads) <= 1.03 * sum(loads)
    mini_batch = lengths[:1024]
    loads = tokens(even_shares(mini_batch, 8, 1024), mini_batch)
    assert max(loads) * 8 <= 1.03 * sum(loads)
    fill = sum(lengths) / (32768 * len(packed_bins(lengths, 32768)))
    assert fill >= 0.97
