"""An RL run that dies at any moment and is started again ends where an uninterrupted one does, bit for bit."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from openrlhf.cli.train_ppo_ray import main
from openrlhf.config.groups import ModelConfig
from openrlhf.models.load import load_score_model, load_tokenizer, save_model
from openrlhf.models.tiny import build_model, build_tokenizer
from tests.recipes.helpers import column, metrics, run, write_rows
from tests.recipes.killed import run_apart

# Rewards with noise, so that the random numbers of the process that calls it count.
REWARD = """
import random

def reward_func(queries, prompts, labels):
    return [len(set(q)) / 20 + random.random() for q in queries]
"""
# Scores too: all wrong for the first prompt of each data set, by chance for the others.
SCORED = """
import random

def reward_func(queries, prompts, labels):
    noise = [random.random() for _ in queries]
    return {"rewards": noise, "scores": [float(label) if label else float(n > 0.4) for label, n in zip(labels, noise)]}
"""
SAVES = {"save_steps": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    build_model(folder, vocab_size=len(build_tokenizer(folder)), hidden=32, heads=1)
    return folder


@pytest.fixture
def flags(model: Path, tmp_path: Path) -> dict[str, Any]:
    """Five prompts, two at a time, for two episodes: a batch reaches into the second one, and there are five. The KL
    coefficient adapts, and each rollout batch is learned from twice."""
    (tmp_path / "reward.py").write_text(REWARD)
    return {
        "local": True, "pretrain": model, "remote_rm_url": tmp_path / "reward.py", "rollout_batch_size": 2,
        "prompt_data": write_rows(tmp_path / "prompts.jsonl", [{"input": f"say {i}:"} for i in range(5)]),
        "n_samples_per_prompt": 4, "train_batch_size": 4, "micro_train_batch_size": 2, "micro_rollout_batch_size": 4,
        "max_epochs": 2, "generate_max_len": 6, "num_episodes": 2, "actor_learning_rate": 1e-3,
        "critic_learning_rate": 1e-3, "init_kl_coef": 0.05, "kl_target": 0.01, "kl_horizon": 100,
        "save_value_network": True, "save_path": tmp_path / "out", "ckpt_path": tmp_path / "ckpt",
    }  # fmt: skip


def same(flags: dict[str, Any], critic: bool) -> None:
    """As an uninterrupted run without checkpoints."""
    folder, whole = flags["save_path"], flags["save_path"].with_name("whole")
    run(main, {name: value for name, value in flags.items() if name != "load_checkpoint"} | {"save_path": whole})
    assert metrics(folder) == metrics(whole)
    for ending in ("", "_critic") if critic else ("",):
        got, expected = (f.with_name(f.name + ending) / "model.safetensors" for f in (folder, whole))
        assert got.read_bytes() == expected.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["gae", "group_norm"])
@pytest.mark.parametrize(
    ("at", "call"),
    [
        ("openrlhf.training.ppo:add_rewards", 4),  # after a rollout
        ("openrlhf.training.update:optimizer_step", 20),  # inside an update
        ("openrlhf.training.checkpoint_files:publish", 2),  # inside a checkpoint
    ],
)
def test_a_killed_run_goes_on(flags: dict[str, Any], estimator: str, at: str, call: int) -> None:
    flags |= {"advantage_estimator": estimator, "save_value_network": estimator == "gae"}
    assert run_apart("train_ppo_ray", flags | SAVES, at, call) == -signal.SIGKILL
    assert (flags["ckpt_path"] / "global_step2").exists()
    assert run_apart("train_ppo_ray", flags | SAVES | {"load_checkpoint": True}) == 0
    assert len({row["kl_coef"] for row in metrics(flags["save_path"])}) == 5
    same(flags, critic=estimator == "gae")


@pytest.mark.slow
def test_an_average_and_a_frozen_actor_go_on(flags: dict[str, Any]) -> None:
    """The actor learns in three of five steps; killed in the first of them."""
    flags |= {"enable_ema": True, "ema_beta": 0.7, "freezing_actor_steps": 2}
    at = {"at": "openrlhf.training.update:optimizer_step", "call": 3 * 4 + 2}
    assert run_apart("train_ppo_ray", flags | SAVES, **at) == -signal.SIGKILL
    assert run_apart("train_ppo_ray", flags | SAVES | {"load_checkpoint": True}) == 0
    assert ["loss" in row for row in metrics(flags["save_path"])] == [False, False, True, True, True]
    same(flags, critic=True)
    averaged = (flags["save_path"] / "model.safetensors").read_bytes()
    last = run(
        main, flags | {"enable_ema": False, "ema_beta": 0.992, "save_path": flags["save_path"].with_name("last")}
    )
    assert (last / "model.safetensors").read_bytes() != averaged


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at", "call", "step"),
    [
        ("openrlhf.rollout.collect:make_sample", 20, 3),  # inside a rollout
        ("openrlhf.training.update:optimizer_step", 20, 3),
        ("openrlhf.training.checkpoint_files:publish", 1, 2),  # inside the checkpoint of that step: there is no other
    ],
)
def test_a_signal_stops_after_the_step(flags: dict[str, Any], at: str, call: int, step: int) -> None:
    assert run_apart("train_ppo_ray", flags | SAVES, at, call, number=signal.SIGTERM) == 0
    shown = flags["save_path"].with_name("shown").read_text()
    assert f"stopped after step {step} (SIGTERM): the same command with --load_checkpoint goes on from " in shown
    assert run_apart("train_ppo_ray", flags | SAVES | {"load_checkpoint": True}) == 0
    same(flags, critic=True)


@pytest.mark.slow
def test_a_second_signal_ends_the_process_at_once(flags: dict[str, Any]) -> None:
    at = {"at": "openrlhf.training.update:optimizer_step", "call": 20}
    assert run_apart("train_ppo_ray", flags | SAVES, **at, number=signal.SIGTERM, times=2) == 128 + signal.SIGTERM
    assert not (flags["ckpt_path"] / "global_step3").exists()
    assert run_apart("train_ppo_ray", flags | SAVES | {"load_checkpoint": True}) == 0
    same(flags, critic=True)


@pytest.mark.slow
def test_everything_at_once_goes_on(flags: dict[str, Any], model: Path, tmp_path: Path) -> None:
    """Two data sets mixed, prompts that teach nothing replaced, a reward model with statistics beside a function, an
    adapter with dropout, packing, micro-batches by tokens, an average, a KL coefficient that adapts, evaluations that
    choose the best. It dies three times: between steps, inside one, inside a checkpoint."""
    config = ModelConfig(pretrain=str(model))
    with torch.random.fork_rng():
        scorer = load_score_model(str(model), config, "score", new_head=True)
    scorer.set_statistics(0.3, 2.0)
    save_model(scorer, tmp_path / "rm", load_tokenizer(str(model), config))
    (tmp_path / "reward.py").write_text(SCORED)
    few, more = (
        write_rows(tmp_path / f"{n}.jsonl", [{"input": f"{n} {i}:", "label": "" if i else "0"} for i in range(n)])
        for n in (3, 4)
    )
    flags = {name: value for name, value in flags.items() if not name.startswith("micro_")} | {
        "prompt_data": f"{few},{more}", "prompt_data_probs": "0.6,0.4", "label_key": "label",
        "dynamic_filtering": True, "reward_pretrain": tmp_path / "rm", "normalize_reward": True,
        "reward_weights": (0.5, 1), "lora_rank": 4, "lora_dropout": 0.1, "packing_samples": True,
        "use_dynamic_batch": True, "train_max_tokens_per_gpu": 40, "enable_ema": True, "ema_beta": 0.7,
        "eval_dataset": more, "eval_steps": 1, "eval_n_samples_per_prompt": 2, "value_clip": 0.1, "num_episodes": 3,
        "best_metric_key": "eval_default_pass1",
    }  # fmt: skip
    kills = [
        ("openrlhf.training.log:RunLog.step", 4),  # step 0 has a line too
        ("openrlhf.training.update:optimizer_step", 7),
        ("openrlhf.training.checkpoint_files:commit", 1),
    ]
    for number, (at, call) in enumerate(kills):
        again = {"load_checkpoint": True} if number else {}
        assert run_apart("train_ppo_ray", flags | SAVES | again, at, call) == -signal.SIGKILL
    assert run_apart("train_ppo_ray", flags | SAVES | {"load_checkpoint": True}) == 0
    rows = metrics(flags["save_path"])
    assert len({row["kl_coef"] for row in rows if "kl_coef" in row}) > 3
    assert any(row.get("groups_kept", 1) < 1 for row in rows)
    whole = tmp_path / "whole"
    run(main, flags | {"save_path": whole / "out", "ckpt_path": whole / "ckpt"})
    assert metrics(whole / "out") == rows
    for name in ("out", "out_critic", "ckpt/best"):
        got, expected = (folder / name / "adapter_model.safetensors" for folder in (tmp_path, whole))
        assert got.read_bytes() == expected.read_bytes(), name


def test_what_is_written(flags: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    run(main, flags | SAVES | {"save_hf_ckpt": True, "max_ckpt_num": 1})
    kept = flags["ckpt_path"]
    assert {p.name for p in kept.iterdir()} == {"global_step4", "global_step4_hf", "global_step4_hf_critic", "latest"}
    assert {p.name for p in (kept / "global_step4").iterdir()} == {"_actor", "_critic", "_driver", "manifest.json"}
    AutoModelForCausalLM.from_pretrained(kept / "global_step4_hf")
    AutoModelForSequenceClassification.from_pretrained(kept / "global_step4_hf_critic")
    for changed, named in [({"init_kl_coef": 0.1}, "--init_kl_coef (0.05 there, 0.1 here)"),
                           ({"max_samples": 4}, "the rows of --prompt_data ('5 rows ")]:  # fmt: skip
        with pytest.raises(SystemExit):
            run(main, flags | changed | {"load_checkpoint": True})
        assert named in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_only_hugging_face_folders(flags: dict[str, Any]) -> None:
    run(main, flags | SAVES | {"save_hf_ckpt": True, "disable_ds_ckpt": True, "save_value_network": False})
    assert {path.name for path in flags["ckpt_path"].iterdir()} == {"global_step2_hf", "global_step4_hf"}
    assert len(column(flags["save_path"], "reward")) == 5
