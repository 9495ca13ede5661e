"""Rows that differ in anything that is learned from have another fingerprint."""

from __future__ import annotations

import pytest
import torch

from openrlhf.data.fingerprint import fingerprint_prompts, fingerprint_samples
from openrlhf.types import Prompt, Sample


def samples(**changed: object) -> list[Sample]:
    rows = [Sample(torch.tensor([1, 2, i]), torch.tensor([False, True, True])) for i in range(3)]
    for name, value in changed.items():
        setattr(rows[1], name, value)
    return rows


@pytest.mark.parametrize(
    "other",
    [
        samples(tokens=torch.tensor([1, 2, 9])),
        samples(action_mask=torch.tensor([False, False, True])),
        samples(labels=torch.tensor([0.0, 0.5, 0.0])),
        samples(reward=1.0),
        samples(label="yes"),
        samples()[::-1],
        samples()[:2],
        [
            Sample(torch.tensor([1]), torch.tensor([True])),
            Sample(torch.tensor([2, 0, 1, 2, 1, 1, 2, 2]), torch.ones(8)),
        ],
    ],
)
def test_samples(other: list[Sample]) -> None:
    assert fingerprint_samples(samples()) == fingerprint_samples(samples())
    assert fingerprint_samples(other) != fingerprint_samples(samples())


def test_prompts() -> None:
    rows = [Prompt(0, "a", [1, 2]), Prompt(1, "b", [3])]
    assert fingerprint_prompts(rows) == fingerprint_prompts(list(rows)) and fingerprint_prompts(rows).startswith(
        "2 rows "
    )
    for other in ([Prompt(0, "a", [1, 2]), Prompt(1, "b", [3], label="x")], rows[::-1], [Prompt(0, "a", [1, 2, 3])]):
        assert fingerprint_prompts(other) != fingerprint_prompts(rows)
