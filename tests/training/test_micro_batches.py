"""Micro-batches by tokens: what they hold, and that nothing but memory depends on them."""

from __future__ import annotations

from itertools import chain

import pytest
import torch

from certificate.engine import GradientEngine
from openrlhf.config.commands import PPOConfig, SFTConfig, build
from openrlhf.training.micro_batches import TokenBudget, cut, rollout_size, train_size
from openrlhf.types import Batch
from tests.models.helpers import make_batch
from tests.training.helpers import on_two_ranks

LENGTHS = (9, 4, 7, 9, 2, 6, 30, 3)


@pytest.fixture
def batch() -> Batch:
    return make_batch(LENGTHS)


def alone() -> GradientEngine:
    return GradientEngine(torch.nn.Linear(1, 1))


def lengths_of(cuts: list[list[int]]) -> list[list[int]]:
    return [[LENGTHS[row] for row in rows] for rows in cuts]


def test_a_number_counts_rows(batch: Batch) -> None:
    assert cut(batch, 3, alone()) == [slice(0, 3), slice(3, 6), slice(6, 9)]


def test_packed_rows_fill_the_budget(batch: Batch) -> None:
    """Best fit by hand for 20 tokens: 30 alone; 9 + 9 + 2; 7 + 6 + 4 + 3."""
    cuts = cut(batch, TokenBudget(20, packed=True), alone())
    assert lengths_of(cuts) == [[30], [9, 9, 2], [4, 7, 6, 3]]


def test_padding_counts_where_rows_are_padded(batch: Batch) -> None:
    """By hand for 20: 30 alone; 2 × 9; 2 × 7; 3 × 4."""
    cuts = cut(batch, TokenBudget(20, packed=False), alone())
    assert lengths_of(cuts) == [[30], [9, 9], [7, 6], [4, 2, 3]]


def test_rows_of_an_example_stay_together(batch: Batch) -> None:
    """Examples of 13, 16, 8 and 33 tokens; padded 18, 18, 12, 60."""
    packed = cut(batch, TokenBudget(24, packed=True, rows=2), alone())
    assert packed == [[6, 7], [2, 3, 4, 5], [0, 1]]
    padded = cut(batch, TokenBudget(36, packed=False, rows=2), alone())
    assert padded == [[6, 7], [0, 1, 2, 3], [4, 5]]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rows", [1, 2])
def test_two_ranks_make_as_many(batch: Batch, packed: bool, rows: int) -> None:
    """The first rank's rows fit into one, those of the second do not."""
    parts, budget = (batch.select([1, 4, 2, 5]), batch.select([0, 3, 6, 7])), TokenBudget(28, packed, rows)

    def on_rank(rank: int, exchange) -> list[list[int]]:
        return cut(parts[rank], budget, GradientEngine(torch.nn.Linear(1, 1), exchange, rank, 2))

    one, two = on_two_ranks(on_rank)
    assert len(cut(parts[0], budget, alone())) == 1
    assert len(one) == len(two) == len(cut(parts[1], budget, alone())) == 2
    for cuts in (one, two):
        assert all(cuts)
        assert sorted(chain.from_iterable(cuts)) == list(range(4))


SFT = {"pretrain": "m", "dataset": "d"}
PPO = {"pretrain": "m", "prompt_data": "d"}


def test_sizes_follow_from_the_flags() -> None:
    sft = build(SFTConfig, SFT)
    assert train_size(sft.train, sft.model, rows=2) == 16
    sft = build(SFTConfig, SFT | {"use_dynamic_batch": True, "packing_samples": True, "ring_attn_size": 4})
    assert train_size(sft.train, sft.model, rows=2) == TokenBudget(4 * 16384, packed=True, rows=2)
    ppo = build(PPOConfig, PPO)
    assert (train_size(ppo.train, ppo.model), rollout_size(ppo)) == (4, 8)
    ppo = build(PPOConfig, PPO | {"use_dynamic_batch": True, "train_max_tokens_per_gpu": 100})
    assert rollout_size(ppo) == train_size(ppo.train, ppo.model) == TokenBudget(100, packed=False)
    ppo = build(PPOConfig, PPO | {"use_dynamic_batch": True, "rollout_max_tokens_per_gpu": 300})
    assert rollout_size(ppo) == TokenBudget(300, packed=False)
