"""Dynamic filtering by the command: what a run learns from, and that it goes on exactly."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from openrlhf.cli.train_ppo_ray import main
from openrlhf.models.tiny import build_model, build_tokenizer
from tests.recipes.helpers import metrics, run, write_rows
from tests.recipes.killed import run_apart

# All wrong, all right, or right where the answer holds many different letters, by the label; the reward is no score.
REWARD = """
def reward_func(queries, prompts, labels):
    half = [float(len(set(q)) % 2) for q in queries]
    scores = [h if label == "half" else float(label) for h, label in zip(half, labels)]
    return {"rewards": [10 * s for s in scores], "scores": scores}
"""


@pytest.fixture
def flags(tmp_path: Path) -> dict[str, Any]:
    """Twelve prompts, a third of which can teach, for three episodes."""
    model = tmp_path / "model"
    build_model(model, vocab_size=len(build_tokenizer(model)), hidden=32, heads=1)
    (tmp_path / "reward.py").write_text(REWARD)
    rows = [{"input": f"{i}:", "label": ["0", "1", "half"][i % 3]} for i in range(12)]
    return {
        "local": True, "pretrain": model, "remote_rm_url": tmp_path / "reward.py", "label_key": "label",
        "prompt_data": write_rows(tmp_path / "prompts.jsonl", rows), "rollout_batch_size": 4,
        "n_samples_per_prompt": 4, "train_batch_size": 8, "micro_train_batch_size": 8, "num_episodes": 3,
        "advantage_estimator": "group_norm", "generate_max_len": 8, "actor_learning_rate": 1e-3, "init_kl_coef": 0,
        "dynamic_filtering": True, "save_path": tmp_path / "out", "ckpt_path": tmp_path / "ckpt",
    }  # fmt: skip


def test_it_trains_on_prompts_between_and_goes_on_exactly(flags: dict[str, Any], tmp_path: Path) -> None:
    """A batch asks until four groups are kept; every prompt is asked once an episode, 36 times in all."""
    saves = flags | {"save_steps": 1}
    at = {"at": "openrlhf.training.ppo:add_rewards", "call": 2}
    assert run_apart("train_ppo_ray", saves, **at) == -signal.SIGKILL
    assert run_apart("train_ppo_ray", saves | {"load_checkpoint": True}) == 0
    whole = run(main, flags | {"save_path": tmp_path / "whole"})
    rows = metrics(whole)
    assert metrics(flags["save_path"]) == rows
    assert (flags["save_path"] / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert len(rows) >= 2
    asked = [4 / row["groups_kept"] for row in rows[:-1]]
    assert all(count == pytest.approx(round(count)) for count in asked)
    assert sum(asked) <= 36
    assert all(row["groups_kept"] < 0.5 for row in rows)
    assert all(0 < row["score"] < 1 for row in rows)
    assert all(row["advantage_std"] > 0.5 for row in rows)  # with groups of one score it would be near 0


def test_a_batch_that_began_before_the_update_is_filled_after_it(flags: dict[str, Any]) -> None:
    """In the order of this seed the first four prompts of a step never all teach, so others take their places."""
    rows = metrics(run(main, flags | {"async_train": True}))
    assert len(rows) >= 2
    assert rows[0]["staleness_max"] == 0
    assert max(row["staleness_max"] for row in rows) == 1
    assert all(row["staleness"] < 1 for row in rows)
    assert sum(4 / row["groups_kept"] for row in rows[:-1]) <= 36
    assert all(row["groups_kept"] < 0.5 for row in rows)


def test_a_run_in_which_no_prompt_teaches(flags: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    run(main, flags | {"dynamic_filtering_reward_range": (0.99, 1.5), "num_episodes": 1})
    assert metrics(flags["save_path"])[-1]["score"] == 1.0
    out = run(main, flags | {"dynamic_filtering_reward_range": (1.5, 2.0), "num_episodes": 1})
    assert metrics(out) == []
    assert "--dynamic_filtering kept none of the last 12 prompts" in capsys.readouterr().out
