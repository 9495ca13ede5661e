import pytest
import torch

from openrlhf.types import Batch, Sample, collate, merge_metrics


def sample(tokens: list[int], actions: int, **fields) -> Sample:
    mask = [False] * (len(tokens) - actions) + [True] * actions
    return Sample(torch.tensor(tokens), torch.tensor(mask), **fields)


def test_collate_pads_on_the_right_and_keeps_the_order():
    batch = collate([sample([5, 6, 7], 1, reward=1.0), sample([8, 9], 1, reward=0.5, group=3)], pad_token_id=0)
    assert batch.tokens.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch.attention_mask.tolist() == [[True, True, True], [True, True, False]]
    assert batch.action_mask.tolist() == [[False, False, True], [False, True, False]]
    assert batch.rewards.tolist() == [1.0, 0.5]
    assert batch.groups.tolist() == [0, 3]


def test_a_field_that_one_sample_lacks_is_absent():
    batch = collate([sample([1], 1, reward=1.0), sample([2], 1)], pad_token_id=0)
    assert batch.rewards is None
    assert batch.rollout_log_probs is None


def test_collate_refuses_nothing():
    with pytest.raises(ValueError, match="no samples"):
        collate([], pad_token_id=0)


def test_select_takes_rows_and_cuts_padding_nobody_needs():
    batch = collate([sample([1, 2, 3], 1), sample([4], 1), sample([5, 6], 1)], pad_token_id=0)
    chosen = batch.select([2, 1])
    assert chosen.tokens.tolist() == [[5, 6], [4, 0]]
    assert chosen.action_mask.tolist() == [[False, True], [True, False]]
    assert chosen.tokens.untyped_storage().nbytes() == chosen.tokens.nbytes  # what is cut off is not sent either


def test_fillers_complete_the_number_of_rows_with_the_shortest_and_carry_no_action():
    batch = collate([sample([1, 2, 3], 2), sample([3, 4], 1), sample([5, 6, 7], 2)], pad_token_id=0)
    filled = batch.with_fillers(2)
    assert filled.lengths.tolist() == [3, 2, 3, 2]
    assert filled.action_mask.sum(dim=1).tolist() == [2, 1, 2, 0]
    assert batch.with_fillers(3) is batch


def test_a_batch_keeps_what_it_is_filled_with():
    batch = collate([sample([1, 2], 1)], pad_token_id=0)
    assert isinstance(batch.fill(values=torch.ones(1, 2)), Batch)
    assert batch.fill(values=torch.ones(1, 2)).inputs().values is None


def test_merge_metrics_averages_over_the_parts_that_have_the_name():
    assert merge_metrics([{"a": 1.0, "b": 4.0}, {"a": 3.0}]) == {"a": 2.0, "b": 4.0}
