"""Steps that were left out: what is written of them, and when a run gives up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from openrlhf.config.groups import LogConfig, TrainConfig
from openrlhf.training.log import RunLog
from openrlhf.training.skips import Skips
from openrlhf.types import Batch


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]


def batch_of(groups: list[int]) -> Batch:
    nothing = torch.zeros(len(groups), 1, dtype=torch.bool)
    return Batch(nothing.long(), nothing, nothing, groups=torch.tensor(groups))


def test_only_steps_in_a_row_count(tmp_path: Path) -> None:
    skips = Skips(2, RunLog(tmp_path, LogConfig(), {}))
    for step, skipped in enumerate([True, False, True, False], start=1):
        skips.note(step, "model", skipped, [step])
    assert skips.why is None
    skips.note(5, "critic", True, [5])
    skips.note(5, "model", True, [5])
    assert skips.why is None  # each model has a row of its own
    skips.note(6, "model", True, [6])
    assert skips.why is not None and "--max_skipped_steps 2" in skips.why and "step 6" in skips.why
    assert [line["step"] for line in lines(tmp_path)] == [1, 3, 5, 5, 6]


def test_the_rows_of_an_update_are_those_of_its_mini_batches(tmp_path: Path) -> None:
    """Five rows in mini-batches of two, twice: step 4 is the second mini-batch of the second pass."""
    skips = Skips(2, RunLog(tmp_path, LogConfig(), {}))
    train = TrainConfig(train_batch_size=2, max_epochs=2)
    metrics = {"skipped_steps": 2.0, "skipped_step/2": 1.0, "skipped_step/4": 1.0}
    skips.note_update(7, "actor", metrics, batch_of([9, 9, 8, 8, 3]), train)
    skips.note_update(7, "critic", {}, batch_of([9]), train)
    assert lines(tmp_path) == [
        {"step": 7, "model": "actor", "rows": [3]},
        {"step": 7, "model": "actor", "rows": [8, 8]},
    ]
    assert skips.why is None


@pytest.mark.parametrize("done", [0, 3])
def test_the_file_goes_on_with_the_run_and_not_with_another(tmp_path: Path, done: int) -> None:
    first = RunLog(tmp_path, LogConfig(), {})
    for step in (2, 4):
        first.skipped(step, "model", [step])
    first.close()
    second = RunLog(tmp_path, LogConfig(), {}, done=done)
    second.skipped(5, "model", [5])
    second.close()
    assert [line["step"] for line in lines(tmp_path)] == ([2, 5] if done else [5])


def test_a_run_that_goes_on_counts_on(tmp_path: Path) -> None:
    skips = Skips(3, RunLog(tmp_path, LogConfig(), {}), {"actor": 2})
    skips.note(1, "critic", True, [1])
    assert skips.why is None and skips.in_a_row == {"actor": 2, "critic": 1}
    skips.note(1, "actor", True, [1])
    assert skips.why is not None
