"""``openrlhf prm`` from labelled steps to a folder that Transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from openrlhf.cli.train_prm import main
from tests.recipes.helpers import column, metrics, run, write_rows

# A step with a is right, a step with b is wrong.
ROWS = [{"input": "".join(f"{'ab'[(i >> k) & 1]}#" for k in range(3)), "label": ["+-"[(i >> k) & 1] for k in range(3)]}
        for i in range(8)]  # fmt: skip


@pytest.fixture
def flags(tiny_folder: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "pretrain": tiny_folder, "dataset": write_rows(tmp_path / "rows.jsonl", ROWS), "placeholder_token": "#",
        "reward_tokens": ("+", "-"), "max_len": 64, "train_batch_size": 4, "micro_train_batch_size": 2,
        "max_epochs": 2, "learning_rate": 1e-3, "save_path": tmp_path / "out",
    }  # fmt: skip


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_it_learns_which_steps_are_right(flags: dict[str, Any], tmp_path: Path, soft: bool) -> None:
    if soft:
        rows = [{**row, "label": [float(label == "+") for label in row["label"]]} for row in ROWS]
        flags["dataset"] = write_rows(tmp_path / "soft.jsonl", rows)
    folder = run(main, flags | {"max_epochs": 25, "learning_rate": 3e-3, "eval_dataset": flags["dataset"]})
    assert column(folder, "accuracy")[-1] == 1.0
    assert column(folder, "eval_accuracy")[-1] == 1.0
    assert column(folder, "loss")[-1] < 0.3
    AutoModelForCausalLM.from_pretrained(folder)


def test_packing_and_micro_batches_are_matters_of_speed(flags: dict[str, Any], tmp_path: Path) -> None:
    plain = metrics(run(main, flags))
    for number, variant in enumerate([{"packing_samples": True}, {"micro_train_batch_size": 1}]):
        got = metrics(run(main, flags | variant | {"save_path": tmp_path / str(number)}))
        for a, b in zip(plain, got, strict=True):
            assert a == pytest.approx(b, rel=1e-3, abs=1e-5)
