"""Evaluation in RL by the command: what it measures, when, and that training does not notice."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from openrlhf.cli.train_ppo_ray import main
from openrlhf.models.tiny import build_model, build_tokenizer
from tests.recipes.helpers import column, metrics, run, write_rows
from tests.recipes.killed import run_apart

# The reward of an evaluation prompt is its label, so its rates are known. Those of training have noise.
REWARD = """
import random

def reward_func(queries, prompts, labels):
    noise = [random.random() for _ in queries]
    return [float(label) if label else n + len(set(q)) / 20 for q, label, n in zip(queries, labels, noise)]
"""
TEST_ROWS = [
    {"input": "one", "label": "1", "datasource": "sums"}, {"input": "two", "label": "0", "datasource": "sums"},
    {"input": "three", "label": "0.25"},
]  # fmt: skip
RATES = {"eval_sums_pass1": 0.5, "eval_sums_pass2": 0.5, "eval_default_pass1": 0.25, "eval_default_pass2": 0.25}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    build_model(folder, vocab_size=len(build_tokenizer(folder)), hidden=32, heads=1)
    return folder


@pytest.fixture
def flags(model: Path, tmp_path: Path) -> dict[str, Any]:
    """Six prompts, two at a time, for two episodes: six steps."""
    (tmp_path / "reward.py").write_text(REWARD)
    return {
        "local": True, "pretrain": model, "remote_rm_url": tmp_path / "reward.py", "label_key": "label",
        "prompt_data": write_rows(tmp_path / "prompts.jsonl", [{"input": f"{i}:", "label": ""} for i in range(6)]),
        "rollout_batch_size": 2, "n_samples_per_prompt": 4, "train_batch_size": 8, "micro_train_batch_size": 8,
        "advantage_estimator": "rloo", "generate_max_len": 6, "num_episodes": 2, "actor_learning_rate": 1e-3,
        "init_kl_coef": 0, "save_path": tmp_path / "out", "ckpt_path": tmp_path / "ckpt",
    }  # fmt: skip


@pytest.fixture
def evaluated(flags: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    rows = write_rows(tmp_path / "test.jsonl", TEST_ROWS)
    return flags | {"eval_dataset": rows, "eval_n_samples_per_prompt": 2}


def rates(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name.startswith("eval_")}


def test_each_episode_by_default(evaluated: dict[str, Any]) -> None:
    rows = metrics(run(main, evaluated))
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5, 6]
    assert [rates(row) for row in rows] == [RATES, {}, {}, RATES, {}, {}, RATES]
    assert not evaluated["ckpt_path"].exists()


def test_training_does_not_notice(flags: dict[str, Any], evaluated: dict[str, Any], tmp_path: Path) -> None:
    """The random numbers of the reward function included, and with another temperature and log interval."""
    out = run(main, evaluated | {"eval_steps": 2, "eval_temperature": 0, "logging_steps": 3})
    rows = metrics(out)
    assert [(row["step"], rates(row)) for row in rows] == [(0, RATES), (2, RATES), (3, {}), (4, RATES), (6, RATES)]
    plain = run(main, flags | {"save_path": tmp_path / "plain"})
    trained = [{k: v for k, v in row.items() if k not in RATES} for row in rows[1:]]
    assert trained == [row for row in metrics(plain) if row["step"] in (2, 3, 4, 6)]
    assert (out / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()


# The share of small letters, which training raises.
LEARNT = """
def reward_func(queries, prompts, labels):
    return [sum(c.islower() for c in q[len(p):]) / 6 for q, p in zip(queries, prompts)]
"""


@pytest.mark.slow
def test_the_best_model_survives_a_kill(evaluated: dict[str, Any], tmp_path: Path) -> None:
    """Killed in step 5, after an evaluation in step 4; the checkpoint of step 4 says how good the best one was."""
    evaluated["remote_rm_url"].write_text(LEARNT)
    evaluated |= {
        "eval_steps": 1, "best_metric_key": "eval_sums_pass1", "eval_n_samples_per_prompt": 32, "save_steps": 2,
        "actor_learning_rate": 1e-2, "lr_scheduler": "constant", "eval_temperature": 1.0, "n_samples_per_prompt": 32,
        "train_batch_size": 64, "micro_train_batch_size": 64,
    }  # fmt: skip
    at = {"at": "openrlhf.training.ppo:add_rewards", "call": 5}  # once a step
    assert run_apart("train_ppo_ray", evaluated, **at) == -signal.SIGKILL
    assert run_apart("train_ppo_ray", evaluated | {"load_checkpoint": True}) == 0
    whole = evaluated | {"save_path": tmp_path / "whole", "ckpt_path": tmp_path / "whole_ckpt"}
    assert metrics(evaluated["save_path"]) == metrics(run(main, whole))
    values = column(evaluated["save_path"], "eval_sums_pass1")
    assert max(values[1:]) > values[1]
    weights = [folder / "best" / "model.safetensors" for folder in (evaluated["ckpt_path"], whole["ckpt_path"])]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    AutoModelForCausalLM.from_pretrained(evaluated["ckpt_path"] / "best")


def test_a_best_metric_that_is_none(evaluated: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(main, evaluated | {"best_metric_key": "eval_sums_pass4"})
    shown = capsys.readouterr().err
    assert "--best_metric_key eval_sums_pass4" in shown
    assert ", ".join(sorted(RATES)) in shown
