"""``openrlhf ppo --local`` on a toy task: the share of letters and digits among the characters of the answer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from openrlhf.cli.train_ppo_ray import main
from openrlhf.config.groups import ModelConfig
from openrlhf.models.load import load_score_model, load_tokenizer, save_model
from openrlhf.models.tiny import build_model, build_tokenizer
from openrlhf.types import Sample, collate
from tests.recipes.helpers import column, metrics, run, words, write_rows

REWARD = """
import random

def share(query, prompt):
    answer = query[len(prompt):]
    return sum(c.isascii() and c.isalnum() for c in answer) / max(1, len(answer))

def reward_func(queries, prompts, labels):
    rewards = [share(q, p) for q, p in zip(queries, prompts)]
    {then}
    return {{"rewards": rewards, "extra_logs": {{"labels": [float(label) for label in labels]}}}}
"""
SHUFFLE = "random.shuffle(rewards)"
START, LEARNED = 0.35, 0.75  # a random model has 0.26


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bytes alone, so that a fifth of the vocabulary is a letter or a digit."""
    folder = tmp_path_factory.mktemp("bytes")
    build_model(folder, vocab_size=len(build_tokenizer(folder)))
    return folder


@pytest.fixture
def flags(model: Path, tmp_path: Path) -> dict[str, Any]:
    """Ten rollout batches of 64 samples."""
    prompts = [{"input": f"say {i}:", "label": i} for i in range(8)]
    (tmp_path / "reward.py").write_text(REWARD.format(then=""))
    return {
        "local": True, "pretrain": model, "prompt_data": write_rows(tmp_path / "prompts.jsonl", prompts),
        "label_key": "label", "remote_rm_url": tmp_path / "reward.py", "rollout_batch_size": 8,
        "n_samples_per_prompt": 8, "train_batch_size": 64, "micro_train_batch_size": 64,
        "micro_rollout_batch_size": 64, "generate_max_len": 6, "num_episodes": 10, "lr_scheduler": "constant",
        "actor_learning_rate": 2e-2, "critic_learning_rate": 2e-2, "init_kl_coef": 0.001,
        "save_path": tmp_path / "out",
    }  # fmt: skip


@pytest.mark.parametrize("estimator", ["gae", "reinforce", "reinforce_baseline", "rloo", "group_norm", "dr_grpo"])
def test_every_estimator_raises_the_reward(flags: dict[str, Any], estimator: str) -> None:
    rewards = column(run(main, flags | {"advantage_estimator": estimator}), "reward")
    assert rewards[0] < START
    assert rewards[-1] > LEARNED


def test_shuffled_rewards_teach_nothing(flags: dict[str, Any]) -> None:
    flags["remote_rm_url"].write_text(REWARD.format(then=SHUFFLE))
    rewards = column(run(main, flags | {"advantage_estimator": "group_norm"}), "reward")
    assert max(rewards) < 0.45  # shuffling keeps the mean, so this is the true one


def test_several_steps_on_a_rollout_batch_clip(flags: dict[str, Any]) -> None:
    """Two epochs of two mini-batches; the KL is in the loss and the coefficient adapts."""
    flags |= {
        "advantage_estimator": "group_norm", "max_epochs": 2, "train_batch_size": 32, "micro_train_batch_size": 8,
        "use_kl_loss": True, "kl_estimator": "k3", "kl_target": 0.01, "num_episodes": 4, "temperature": 0.9,
        "init_kl_coef": 0.05,
    }  # fmt: skip
    rows = metrics(run(main, flags))
    assert rows[-1]["reward"] > rows[0]["reward"] + 0.1
    assert any(row["clip_ratio"] > 0 for row in rows)
    assert rows[0]["kl_coef"] == 0.05 < rows[-1]["kl_coef"]
    assert max(row["engine_log_prob_diff"] for row in rows) < 1e-4  # the engine sampled from the policy that trains


def test_what_is_logged_and_saved(flags: dict[str, Any]) -> None:
    flags |= {"advantage_estimator": "gae", "num_episodes": 2, "rollout_batch_size": 4, "train_batch_size": 32,
              "micro_train_batch_size": 32, "save_value_network": True}  # fmt: skip
    folder = run(main, flags)
    rows = metrics(folder)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert sum(row["reward/labels"] for row in rows[:2]) / 2 == 3.5  # each prompt once an episode
    assert [row["weight_version"] for row in rows] == [0, 1, 2, 3]
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6)
    for name in ("critic_loss", "critic_value", "critic_return", "critic_grad_norm", "entropy", "advantage_std"):
        assert all(name in row for row in rows), name
    AutoTokenizer.from_pretrained(folder)
    trained, start = (AutoModelForCausalLM.from_pretrained(f) for f in (folder, flags["pretrain"]))
    assert not torch.equal(trained.lm_head.weight, start.lm_head.weight)
    critic = AutoModelForSequenceClassification.from_pretrained(folder.with_name("out_critic"))
    assert critic.score.weight.shape == (1, 64)


def test_the_written_config_repeats_the_run(flags: dict[str, Any], tmp_path: Path) -> None:
    first = run(main, flags | {"advantage_estimator": "gae", "num_episodes": 2})
    main(["--config", str(first / "run_config.yaml"), "--save_path", str(tmp_path / "again")])
    assert metrics(tmp_path / "again") == metrics(first)


def test_micro_batches_and_packing_are_matters_of_speed(flags: dict[str, Any], tmp_path: Path) -> None:
    """To rounding, in the first update. A KL loss, entropy bonus and temperature are on."""
    flags |= {
        "advantage_estimator": "group_norm", "use_kl_loss": True, "kl_estimator": "k2", "entropy_loss_coef": 0.01,
        "num_episodes": 1, "temperature": 0.8,
    }  # fmt: skip
    (plain,) = metrics(run(main, flags))
    for number, variant in enumerate([{"micro_train_batch_size": 4, "micro_rollout_batch_size": 7},
                                      {"packing_samples": True}, {"gradient_checkpointing": True}]):  # fmt: skip
        (other,) = metrics(run(main, flags | variant | {"save_path": tmp_path / str(number)}))
        assert other == pytest.approx(plain, rel=1e-3, abs=1e-5)


FAILS = """
def reward_func(queries, prompts, labels):
    if any(int(label) == 3 for label in labels):
        raise RuntimeError("three is no number")
    return [float(label) for label in labels]
"""


def test_samples_without_a_reward_are_left_out(flags: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """The samples of one prompt of eight: its group is gone, the others keep theirs."""
    flags["remote_rm_url"].write_text(FAILS)
    flags |= {"advantage_estimator": "rloo", "num_episodes": 2, "train_batch_size": 16, "micro_train_batch_size": 8}
    rows = metrics(run(main, flags | {"on_reward_failure": "drop"}))
    assert [row["reward/invalid"] for row in rows] == [1 / 8, 1 / 8]
    assert [row["reward"] for row in rows] == [pytest.approx((0 + 1 + 2 + 4 + 5 + 6 + 7) / 7)] * 2
    with pytest.raises(RuntimeError, match="three is no number"):
        main(words(flags))


def test_an_embedding_that_is_padded_beyond_the_tokenizer(flags: dict[str, Any], model: Path, tmp_path: Path) -> None:
    """A random model draws ids that have no text: they are learned from as they were drawn, and texts go without."""
    build_model(tmp_path / "wide", vocab_size=450)
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "wide")
    seen = tmp_path / "seen.py"
    seen.write_text("def reward_func(queries, prompts, labels):\n    return [float(len(q)) for q in queries]\n")
    flags |= {"pretrain": tmp_path / "wide", "remote_rm_url": seen, "num_episodes": 2, "advantage_estimator": "rloo"}
    rows = metrics(run(main, flags))
    lengths = [row["reward"] - len("say 0:") for row in rows]
    assert all(0 < text < 0.85 * row["response_length"] for text, row in zip(lengths, rows, strict=True))
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert all(row["engine_log_prob_diff"] < 1e-4 for row in rows[:1])


def scorer(model: Path, folder: Path) -> Path:
    """A reward model whose head was fitted by least squares to tell whether the last token is a letter or a digit."""
    config = ModelConfig(pretrain=str(model))
    tokenizer = load_tokenizer(str(model), config)
    scores = load_score_model(str(model), config, "score", new_head=True).eval()
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(3, len(tokenizer), (2000, 6), generator=generator)
    good = torch.tensor([len(t) == 1 and t.isascii() and t.isalnum() for t in map(tokenizer.decode, rows[:, -1:])])
    with torch.no_grad():
        states = scores.hf.model(rows).last_hidden_state[:, -1]
        head = torch.linalg.lstsq(states, good.float()[:, None] * 2 - 1).solution.T
        scores.hf.score.weight.copy_(head)
    samples = [Sample(row, torch.ones(6, dtype=torch.bool)) for row in rows]
    with torch.no_grad():
        raw = scores(collate(samples, 0))
    assert raw[good].mean() > raw[~good].mean() + 0.3
    scores.set_statistics(float(raw.mean()), float(raw.std()))
    save_model(scores, folder, tokenizer)
    return folder


def test_reward_models_and_a_function_are_summed(flags: dict[str, Any], model: Path, tmp_path: Path) -> None:
    """The same model twice with opposite weights is nothing, so that what is left is the function."""
    rm = scorer(model, tmp_path / "rm")
    flags |= {"advantage_estimator": "rloo", "num_episodes": 2}
    alone = metrics(run(main, flags))
    several = {"reward_pretrain": f"{rm},{rm}", "reward_weights": (3.0, -3.0, 1.0), "save_path": tmp_path / "summed"}
    summed = metrics(run(main, flags | several))
    assert [row["reward"] for row in summed] == pytest.approx([row["reward"] for row in alone], abs=1e-5)
    assert all(row["reward/model_1"] == row["reward/model_2"] != 0 for row in summed)
    assert [row["reward/function"] for row in summed] == pytest.approx([row["reward"] for row in alone], abs=1e-5)


@pytest.mark.parametrize("estimator", ["gae", "group_norm"])
def test_a_reward_model_teaches_as_well(flags: dict[str, Any], model: Path, tmp_path: Path, estimator: str) -> None:
    """Its normalised scores begin at mean 0 and std 1, and so do the critic's returns."""
    del flags["remote_rm_url"]
    flags |= {"reward_pretrain": scorer(model, tmp_path / "rm"), "normalize_reward": True, "critic_learning_rate": 2e-3}
    flags |= {"n_samples_per_prompt": 16, "train_batch_size": 128, "micro_train_batch_size": 128, "num_episodes": 18}
    rows = metrics(run(main, flags | {"advantage_estimator": estimator}))
    assert abs(rows[0]["reward"]) < 0.8
    assert 0.7 < rows[0]["reward_std"] < 1.3
    rewards = [row["reward"] for row in rows]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:2]) / 2 + 1
    assert "score" not in rows[0]
    if estimator == "gae":  # the critic starts from the reward model and learns returns on the scale of its scores
        assert all(row["critic_loss"] < 2.0 for row in rows[-3:])
