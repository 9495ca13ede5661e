"""Which pairs the mean and standard deviation of the scores are taken from, where there is no evaluation data."""

from __future__ import annotations

import pytest
import torch

from openrlhf.training.scores import spread_pairs
from openrlhf.types import Sample


def pairs(number: int) -> list[Sample]:
    return [Sample(torch.tensor([1, 2]), torch.tensor([False, True]), group=i) for i in range(number) for _ in range(2)]


@pytest.mark.parametrize(
    ("number", "groups"),
    [(3, range(3)), (100, range(100)), (200, range(0, 200, 2)), (20_000, range(0, 20_000, 100))],
)
def test_one_pair_in_a_hundred_and_at_least_a_hundred_from_the_whole_of_the_data(number: int, groups: range) -> None:
    found = [sample.group for sample in spread_pairs(pairs(number))]
    assert found == [group for group in groups for _ in range(2)]
