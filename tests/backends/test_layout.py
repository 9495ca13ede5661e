"""Who shares rows with whom, by hand."""

from __future__ import annotations

import pytest

from openrlhf.backends.layout import Layout


@pytest.mark.parametrize("sizes", [{}, {"ring": 1}, {"tensor": 1}])
def test_alone_every_rank_has_its_own_rows(sizes: dict[str, int]) -> None:
    ranks = [Layout(rank, 3, **sizes) for rank in range(3)]
    assert [(r.data_rank, r.data_world, r.speaks) for r in ranks] == [(0, 3, True), (1, 3, True), (2, 3, True)]
    assert [r.writes for r in ranks] == [True, False, False]


@pytest.mark.parametrize("name", ["ring", "tensor"])
def test_consecutive_ranks_share_rows(name: str) -> None:
    ranks = [Layout(rank, 6, **{name: 3}) for rank in range(6)]
    assert [r.data_rank for r in ranks] == [0, 0, 0, 1, 1, 1]
    assert {r.data_world for r in ranks} == {2}
    assert [r.speaks for r in ranks] == [True, False, False, True, False, False]
    assert [r.writes for r in ranks] == [True, False, False, False, False, False]


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="--ring_attn_size 2 does not divide the 3 processes"):
        Layout(0, 3, ring=2)
    with pytest.raises(ValueError, match="--ds_tensor_parallel_size 4 does not divide the 2 processes"):
        Layout(0, 2, tensor=4)
    with pytest.raises(ValueError, match="--ring_attn_size 2 and --ds_tensor_parallel_size 2"):
        Layout(0, 4, ring=2, tensor=2)
