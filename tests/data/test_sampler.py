from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf.data.sampler import Cursor, batches, epoch_order


def test_an_epoch_holds_every_row_once_in_an_order_of_its_own():
    first, second = epoch_order(50, seed=7, epoch=0), epoch_order(50, seed=7, epoch=1)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert first != list(range(50))
    assert first == epoch_order(50, seed=7, epoch=0)
    assert first != epoch_order(50, seed=8, epoch=0)
    assert epoch_order(4, seed=7, epoch=3, shuffle=False) == [0, 1, 2, 3]


def test_the_last_batch_of_an_epoch_holds_what_is_left():
    found = list(batches(5, 2, seed=0, epochs=2, shuffle=False))
    assert found == [
        ([0, 1], Cursor(0, 2)),
        ([2, 3], Cursor(0, 4)),
        ([4], Cursor(1, 0)),
        ([0, 1], Cursor(1, 2)),
        ([2, 3], Cursor(1, 4)),
        ([4], Cursor(2, 0)),
    ]


def test_batches_may_reach_across_epochs():
    found = list(batches(5, 3, seed=0, epochs=2, shuffle=False, across_epochs=True))
    assert found == [
        ([0, 1, 2], Cursor(0, 3)),
        ([3, 4, 0], Cursor(1, 1)),
        ([1, 2, 3], Cursor(1, 4)),
        ([4], Cursor(2, 0)),
    ]


def test_a_data_set_smaller_than_the_batch():
    assert list(batches(3, 8, seed=0, epochs=2, shuffle=False)) == [
        ([0, 1, 2], Cursor(1, 0)),
        ([0, 1, 2], Cursor(2, 0)),
    ]
    across = list(batches(3, 8, seed=0, epochs=3, shuffle=False, across_epochs=True))
    assert across == [([0, 1, 2, 0, 1, 2, 0, 1], Cursor(2, 2)), ([2], Cursor(3, 0))]


@given(
    size=st.integers(1, 20),
    batch_size=st.integers(1, 25),
    seed=st.integers(0, 5),
    across=st.booleans(),
    data=st.data(),
)
def test_resuming_at_any_cursor_is_the_uninterrupted_run(size, batch_size, seed, across, data):
    whole = list(batches(size, batch_size, seed, epochs=3, across_epochs=across))
    assert sorted(chain.from_iterable(batch for batch, _ in whole)) == sorted(list(range(size)) * 3)
    stop = data.draw(st.integers(1, len(whole)))
    cursor = whole[stop - 1][1]
    assert list(batches(size, batch_size, seed, epochs=3, start=cursor, across_epochs=across)) == whole[stop:]


@given(size=st.integers(1, 20), before=st.integers(1, 7), after=st.integers(1, 7), steps=st.integers(1, 30))
def test_resuming_with_another_batch_size_uses_every_row_once(size, before, after, steps):
    whole = list(batches(size, before, seed=3, epochs=2))[:steps]
    rest = batches(size, after, seed=3, epochs=2, start=whole[-1][1])
    used = [i for batch, _ in whole for i in batch] + [i for batch, _ in rest for i in batch]
    assert used == epoch_order(size, 3, 0) + epoch_order(size, 3, 1)


@pytest.mark.parametrize("size, batch_size", [(0, 4), (4, 0)])
def test_nothing_to_batch_is_refused(size, batch_size):
    with pytest.raises(ValueError, match="both must be at least 1"):
        batches(size, batch_size, seed=0, epochs=1)


def test_a_cursor_of_a_larger_data_set_is_refused():
    with pytest.raises(ValueError, match="used 9 rows of an epoch, but the data set has only 8"):
        batches(8, 2, seed=0, epochs=1, start=Cursor(0, 9))
