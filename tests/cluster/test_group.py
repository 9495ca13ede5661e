"""Cutting a batch over ranks and putting the answers together, without Ray's processes."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from openrlhf.types import Sample, collate

pytest.importorskip("ray")
from openrlhf.cluster.group import Group, merge, shard


def batch_of(lengths: list[int]):
    return collate(
        [Sample(torch.full((n,), i), torch.ones(n, dtype=torch.bool)) for i, n in enumerate(lengths)], pad_token_id=99
    )


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_merge_undoes_shard(ranks):
    batch = batch_of([3, 1, 4, 1, 5, 2, 6])
    shards, rows = shard(batch, ranks, len(batch))
    assert len({len(part) for part in shards}) == 1
    tokens = [torch.where(part.attention_mask, part.tokens, 0).float() for part in shards]
    merged = merge(tokens, rows, len(batch), batch.tokens.shape[1])
    assert torch.equal(merged, torch.where(batch.attention_mask, batch.tokens, 0).float())
    assert merge([part.tokens[:, 0] for part in shards], rows, len(batch), 0).tolist() == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_mini_batches_of_all_ranks_are_those_of_one(ranks):
    batch = batch_of([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3])
    for start in range(0, 16, 8):
        rows = [
            row
            for part in shard(batch, ranks, 8)[0]
            for row in part.select(slice(start // ranks, (start + 8) // ranks)).tokens[:, 0].tolist()
        ]
        assert sorted(rows) == list(range(start, start + 8))


def test_filled_rows_carry_no_loss():
    shards, _ = shard(batch_of([2, 2, 2]), 2, 4)
    assert sum(int(part.action_mask.sum()) for part in shards) == 6


def test_workers_of_a_ring_get_the_same_rows_and_answer_once():
    batch = batch_of([3, 1, 4, 1, 5])
    group = Group("actor", [object()] * 4, threading.RLock(), False, ThreadPoolExecutor(1), 1.0, sharing=2)
    asked = []

    def answer(verb, arguments):
        asked.extend(rows.tokens[:, 0].tolist() for (rows,) in arguments)
        return [rows.tokens[:, 0].float() + worker % 2 for worker, (rows,) in enumerate(arguments)]

    group.call = answer
    assert group.submit_rows("rewards", batch).result(timeout=5).tolist() == [0, 1, 2, 3, 4]
    assert asked == [[1, 3, 4], [1, 3, 4], [0, 2, 1], [0, 2, 1]]
