"""Pieces saved by any number of processes fill those of any other, and what does not fit is refused."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from openrlhf.backends.average import Average
from openrlhf.backends.pieces import Piece, load_pieces, save_pieces, whole_weights

SIZES = {"a": 7, "b": 12, "c": 1}


def trained(seed: int) -> tuple[dict[str, nn.Parameter], torch.optim.AdamW]:
    """Three weights after two steps; the third never has a gradient."""
    torch.manual_seed(seed)
    weights = {name: nn.Parameter(torch.randn(size)) for name, size in SIZES.items()}
    optimizer = torch.optim.AdamW(weights.values(), lr=0.1, fused=True)
    for _ in range(2):
        step(weights, optimizer)
    return weights, optimizer


def step(weights: dict[str, nn.Parameter], optimizer: torch.optim.AdamW) -> None:
    ((weights["a"] ** 2).sum() + (weights["b"] ** 3).sum()).backward()
    optimizer.step()
    optimizer.zero_grad()


class Shard:
    """One of ``world`` processes that lays the weights end to end and holds an equal, padded part, as ZeRO does."""

    def __init__(self, rank: int, world: int) -> None:
        share = -(-sum(SIZES.values()) // world)
        self.flat = nn.Parameter(torch.zeros(share))
        self.optimizer = torch.optim.AdamW([self.flat], lr=0.1, fused=True)
        self.pieces: list[Piece] = []
        begin = 0
        for name, size in SIZES.items():
            first, last = max(begin, rank * share), min(begin + size, (rank + 1) * share)
            if first < last:
                self.pieces.append(Piece(name, size, first - begin, last - first, self.flat, first - rank * share))
            begin += size


def whole(saved: Sequence[dict[str, dict[str, torch.Tensor]]], name: str, kind: str) -> torch.Tensor:
    parts = sorted((part[name] for part in saved if name in part), key=lambda part: int(part["start"]))
    return torch.cat([part["weight"] if kind == "weight" else part["moments"][kind] for part in parts])


@pytest.mark.parametrize("writers", [1, 2, 3, 5])
@pytest.mark.parametrize("readers", [1, 2, 4])
def test_any_number_reads_what_any_number_wrote(writers: int, readers: int) -> None:
    weights, optimizer = trained(0)
    start = [save_pieces(whole_weights(weights.items()), optimizer)]
    first = [Shard(rank, writers) for rank in range(writers)]
    for shard in first:
        load_pieces(shard.pieces, shard.optimizer, start)
    saved = [save_pieces(shard.pieces, shard.optimizer) for shard in first]
    second = [Shard(rank, readers) for rank in range(readers)]
    for shard in second:
        load_pieces(shard.pieces, shard.optimizer, saved)
    again = [save_pieces(shard.pieces, shard.optimizer) for shard in second]
    for name in ("a", "b"):
        assert torch.equal(whole(again, name, "weight"), weights[name].data)
        for moment in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(whole(again, name, moment), optimizer.state[weights[name]][moment])
        assert all(part[name]["step"] == 2 for part in again if name in part)
    assert torch.equal(whole(again, "c", "weight"), weights["c"].data)


def test_the_next_step_is_the_one_that_would_have_come() -> None:
    weights, optimizer = trained(0)
    saved = [save_pieces(whole_weights(weights.items()), optimizer)]
    step(weights, optimizer)
    others, fresh = trained(1)
    load_pieces(whole_weights(others.items()), fresh, saved)
    assert others["c"] not in fresh.state  # as before: it had no gradient
    step(others, fresh)
    for name in SIZES:
        assert torch.equal(others[name], weights[name])


def test_weights_that_are_not_trained_are_not_pieces() -> None:
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    assert whole_weights([("frozen", frozen)]) == []


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda part: part.pop("b"), "it has no weight b"),
        (lambda part: part["b"].update(whole=13), "its b has 13 elements and not 12"),
        (lambda part: part["b"].update(weight=part["b"]["weight"][:5], moments={}), "a part of its b is missing"),
    ],
)
def test_what_does_not_fit_is_refused(spoil, says: str) -> None:
    weights, optimizer = trained(0)
    part = save_pieces(whole_weights(weights.items()), optimizer)
    spoil(part)
    with pytest.raises(ValueError, match=says):
        load_pieces(whole_weights(weights.items()), optimizer, [part])


@pytest.mark.parametrize("readers", [1, 2, 4])
def test_an_average_is_divided_anew(readers: int) -> None:
    """Three processes stepped it; it starts at 0 and the weights are 2 after one step and 6 after the next."""
    shards = [Shard(rank, 3) for rank in range(3)]
    averages = [Average(0.5, shard.pieces) for shard in shards]
    for value in (2.0, 6.0):
        for shard, average in zip(shards, averages, strict=True):
            torch.nn.init.constant_(shard.flat, value)
            average.step(shard.pieces)
    saved = [average.state() for average in averages]
    others = [Average(0.5, Shard(rank, readers).pieces) for rank in range(readers)]
    for other in others:
        other.load_state(saved)
        assert all(torch.equal(piece.flat, torch.full_like(piece.flat, 0.25 * 2 + 0.5 * 6)) for piece in other.pieces)
    assert sum(piece.size for other in others for piece in other.pieces) == sum(SIZES.values())


def test_the_weights_are_back_even_when_the_disk_is_full() -> None:
    shard = Shard(0, 1)
    average = Average(0.5, shard.pieces)
    torch.nn.init.constant_(shard.flat, 3.0)

    def save() -> None:
        with average.in_place_of(shard.pieces):
            assert not shard.flat.any()
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save()
    assert (shard.flat == 3.0).all()
