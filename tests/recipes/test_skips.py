"""A run whose gradients stop being finite ends with its state saved, a sentence and the rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from openrlhf.cli import train_ppo_ray, train_sft
from openrlhf.training.checkpoint_files import verify
from tests.recipes.helpers import metrics, words, write_rows

RUNAWAY = {"lr_warmup_ratio": 0.0, "max_norm": 0.0, "max_skipped_steps": 2}  # after the first step all is infinite


def ends(main: Any, flags: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> tuple[str, list[dict[str, Any]]]:
    with pytest.raises(SystemExit) as stop:
        main(words(flags))
    assert stop.value.code == 2
    skipped = (flags["save_path"] / "skipped.jsonl").read_text().splitlines()
    return capsys.readouterr().err.strip().splitlines()[-1], [json.loads(line) for line in skipped]


@pytest.mark.slow
def test_sft(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"q": f"{i}", "a": "1"} for i in range(8)])
    flags = {
        "pretrain": tiny_folder, "dataset": rows, "input_key": "q", "output_key": "a", "max_len": 64,
        "train_batch_size": 2, "micro_train_batch_size": 1, "learning_rate": 1e30, "save_path": tmp_path / "out",
        "ckpt_path": tmp_path / "ckpt", "save_steps": 100, **RUNAWAY,
    }  # fmt: skip
    sentence, skipped = ends(train_sft.main, flags, capsys)
    assert sentence.startswith("--max_skipped_steps 2: ") and sentence.endswith("global_step3.")
    assert [line["step"] for line in skipped] == [2, 3]
    assert all(len(line["rows"]) == 2 and set(line["rows"]) <= set(range(8)) for line in skipped)
    assert [step["skipped_steps"] for step in metrics(flags["save_path"])] == [0, 1, 1]
    assert verify(flags["ckpt_path"] / "global_step3").step == 3
    # A run that goes on has skipped two in a row already.
    flags |= {"max_skipped_steps": 3, "load_checkpoint": True}
    sentence, skipped = ends(train_sft.main, flags, capsys)
    assert sentence.endswith("global_step4.") and [line["step"] for line in skipped] == [2, 3, 4]


@pytest.mark.slow
def test_rl(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The critic runs away, with two optimizer steps in each step: the second of the first is its first to be skipped.
    The actor goes on, and there is no checkpoint to write."""
    (tmp_path / "reward.py").write_text(
        "def reward_func(queries, prompts, labels):\n    return [float(len(q)) for q in queries]\n"
    )
    flags = {
        "local": True, "pretrain": tiny_folder, "remote_rm_url": tmp_path / "reward.py", "advantage_estimator": "gae",
        "prompt_data": write_rows(tmp_path / "p.jsonl", [{"input": f"say {i}"} for i in range(6)]),
        "rollout_batch_size": 2, "n_samples_per_prompt": 2, "train_batch_size": 2, "micro_train_batch_size": 2,
        "generate_max_len": 4, "init_kl_coef": 0, "actor_learning_rate": 0, "critic_learning_rate": 1e30,
        "save_path": tmp_path / "out", **RUNAWAY, "max_skipped_steps": 3,
    }  # fmt: skip
    sentence, skipped = ends(train_ppo_ray.main, flags, capsys)
    assert sentence.startswith("--max_skipped_steps 3: ") and "the critic" in sentence
    assert {line["model"] for line in skipped} >= {"critic"}
    assert [line["step"] for line in skipped if line["model"] == "critic"] == [1, 2, 2]
    steps = metrics(flags["save_path"])
    assert [step["critic_skipped_steps"] for step in steps] == [1, 2]
    assert "critic_skipped_step/1" in steps[0]
