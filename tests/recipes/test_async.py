"""``openrlhf ppo --local --async_train``: what on-policy gives with a queue of 0, learning, and each prompt once."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from openrlhf.cli.train_ppo_ray import main
from openrlhf.models.tiny import build_model, build_tokenizer
from tests.recipes.helpers import column, metrics, run, write_rows
from tests.recipes.killed import run_apart

# The share of letters and digits in the answer; and the prompt, as a power of 2, so that a sum says which there were.
REWARD = """
def share(query, prompt):
    answer = query[len(prompt):]
    return sum(c.isascii() and c.isalnum() for c in answer) / max(1, len(answer))

def reward_func(queries, prompts, labels):
    rewards = [share(q, p) for q, p in zip(queries, prompts)]
    return {"rewards": rewards, "extra_logs": {"prompts": [2.0 ** int(label) for label in labels]}}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bytes")
    build_model(folder, vocab_size=len(build_tokenizer(folder)))
    return folder


@pytest.fixture
def flags(model: Path, tmp_path: Path) -> dict[str, Any]:
    return run_flags(model, tmp_path)


def run_flags(model: Path, tmp_path: Path) -> dict[str, Any]:
    """Six prompts, two at a time."""
    (tmp_path / "reward.py").write_text(REWARD)
    prompts = [{"input": f"say {i}:", "label": i} for i in range(6)]
    return {
        "local": True, "pretrain": model, "prompt_data": write_rows(tmp_path / "prompts.jsonl", prompts),
        "label_key": "label", "remote_rm_url": tmp_path / "reward.py", "advantage_estimator": "group_norm",
        "rollout_batch_size": 2, "n_samples_per_prompt": 4, "train_batch_size": 8, "micro_train_batch_size": 8,
        "generate_max_len": 6, "lr_scheduler": "constant", "actor_learning_rate": 1e-2, "init_kl_coef": 0,
        "num_episodes": 2, "save_path": tmp_path / "out",
    }  # fmt: skip


def trained_prompts(folder: Path, at_once: int) -> list[int]:
    """The prompts of every step of the log, in order."""
    steps = [round(mean * at_once) for mean in column(folder, "reward/prompts")]
    return [label for total in steps for label in range(total.bit_length()) if total >> label & 1]


def test_a_queue_of_0_is_on_policy(flags: dict[str, Any], tmp_path: Path) -> None:
    plain = run(main, flags)
    empty = run(main, flags | {"async_train": True, "async_queue_size": 0, "save_path": tmp_path / "empty"})
    ahead = run(main, flags | {"async_train": True, "save_path": tmp_path / "ahead"})
    assert metrics(plain) == metrics(empty)
    assert column(plain, "staleness") == [0.0] * 6
    weights = [(folder / "model.safetensors").read_bytes() for folder in (plain, empty, ahead)]
    assert weights[0] == weights[1] != weights[2]
    assert column(ahead, "staleness") == [0.0] + [1.0] * 5
    assert column(ahead, "weight_version") == [0, 0, 1, 2, 3, 4]


@pytest.mark.parametrize("ahead", [1, 3])
def test_it_learns(flags: dict[str, Any], ahead: int, capsys: pytest.CaptureFixture[str]) -> None:
    flags |= {
        "rollout_batch_size": 6, "n_samples_per_prompt": 8, "train_batch_size": 48, "micro_train_batch_size": 48,
        "num_episodes": 16, "actor_learning_rate": 2e-2, "async_train": True, "async_queue_size": ahead,
        "enable_vllm_is_correction": True,
    }  # fmt: skip
    rewards = column(run(main, flags), "reward")
    assert rewards[0] < 0.35
    assert sum(rewards[-3:]) / 3 > 0.7
    assert "--async_train: samples are older" not in capsys.readouterr().out


def test_a_run_without_a_correction_says_so(flags: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    for given, said in ({"async_train": True}, True), ({"async_train": True, "async_queue_size": 0}, False):
        run(main, flags | given | {"max_samples": 2, "num_episodes": 1})
        assert ("--enable_vllm_is_correction takes that into account" in capsys.readouterr().out) is said


@pytest.mark.slow
def test_a_killed_run_learns_from_each_prompt_once(flags: dict[str, Any], tmp_path: Path) -> None:
    """It dies twice with two more rollouts in flight than were learned from, and is stopped once."""
    flags |= {
        "async_train": True, "async_queue_size": 2, "save_steps": 2, "ckpt_path": tmp_path / "ckpt", "num_episodes": 4,
    }  # fmt: skip
    at = {"at": "openrlhf.training.ppo:add_rewards"}
    assert run_apart("train_ppo_ray", flags, **at, call=4) == -signal.SIGKILL
    flags["load_checkpoint"] = True
    assert run_apart("train_ppo_ray", flags, **at, call=4) == -signal.SIGKILL
    assert run_apart("train_ppo_ray", flags, **at, call=3, number=signal.SIGTERM) == 0
    assert run_apart("train_ppo_ray", flags) == 0
    rows = metrics(flags["save_path"])
    assert [row["step"] for row in rows] == list(range(1, 13))
    prompts = trained_prompts(flags["save_path"], at_once=2)
    episodes = [sorted(prompts[start : start + 6]) for start in range(0, 24, 6)]
    assert episodes == [list(range(6))] * 4
    # Checkpoints of the steps 2, 4 and 7: the rollouts in flight there were asked for again.
    assert [row["staleness"] for row in rows] == [0, 1, 0, 1, 0, 1, 2, 0, 1, 2, 2, 2]
