"""Faults planted in real little runs are what ``openrlhf diagnose`` finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from openrlhf.cli.train_ppo_ray import main
from openrlhf.inspect.diagnose import diagnose
from openrlhf.inspect.evidence import gather_evidence
from openrlhf.inspect.rules.finding import Finding
from openrlhf.models.tiny import build_model, build_tokenizer
from tests.recipes.helpers import run, write_rows

SHORT = """
END = "<|im_end|>"

def reward_func(queries, prompts, labels):
    answers = [q[len(p):] for q, p in zip(queries, prompts)]
    return {"rewards": [2 * a.endswith(END) - len(a) / 24 for a in answers], "scores": [0.5] * len(answers)}
"""
SAME = """
def reward_func(queries, prompts, labels):
    return [float(int(label) % 2) for label in labels]
"""


# Of twelve letters, and a single token.
PHRASE = """
def reward_func(queries, prompts, labels):
    answers = [q[len(p):] for q, p in zip(queries, prompts)]
    return {"rewards": [a.count("<|im_start|>") / 12 for a in answers], "scores": [0.5] * len(answers)}
"""
LETTERS = """
def reward_func(queries, prompts, labels):
    return [sum(c.islower() for c in q[len(p):]) / 12 for q, p in zip(queries, prompts)]
"""
BROKEN = """
def reward_func(queries, prompts, labels):
    shares = [sum(c.islower() for c in q[len(p):]) / 12 for q, p in zip(queries, prompts)]
    return [float("nan") if int(label) % 4 == 0 else share for share, label in zip(shares, labels)]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "bytes"
    build_model(folder, vocab_size=len(build_tokenizer(folder)))
    return folder


def findings(model: Path, tmp_path: Path, reward: str, **given: Any) -> dict[str, Finding]:
    """Those of a run of eight prompts with eight answers each, by their rule, the worst first."""
    (tmp_path / "reward.py").write_text(reward)
    prompts = [{"input": f"say {i}:", "label": i} for i in range(8)]
    flags = {
        "local": True, "pretrain": model, "prompt_data": write_rows(tmp_path / "prompts.jsonl", prompts),
        "label_key": "label", "remote_rm_url": tmp_path / "reward.py", "rollout_batch_size": 8,
        "n_samples_per_prompt": 8, "train_batch_size": 64, "micro_train_batch_size": 64, "generate_max_len": 12,
        "micro_rollout_batch_size": 64, "num_episodes": 16, "lr_scheduler": "constant", "actor_learning_rate": 2e-2,
        "init_kl_coef": 0.001, "advantage_estimator": "group_norm", "save_path": tmp_path / "out",
    }  # fmt: skip
    return {finding.rule: finding for finding in diagnose(gather_evidence(run(main, flags | given))).findings}


@pytest.mark.slow
def test_a_reward_for_brevity(model: Path, tmp_path: Path) -> None:
    found = findings(model, tmp_path, SHORT, num_episodes=24)
    assert "shorter answers" in found["length_hacking"].what
    assert "kl_runaway" in found  # the learning rate of 2e-2 sees to that
    assert found["length_hacking"].numbers["response_length, last fifth"] < 3
    assert "entropy_collapse" in found and "truncation" not in found


@pytest.mark.slow
def test_a_reward_for_a_phrase(model: Path, tmp_path: Path) -> None:
    found = findings(model, tmp_path, PHRASE, num_episodes=19, actor_learning_rate=1e-2)
    assert "share '<|im_start|>', and the reward rose with it" in found["format_hacking"].what
    assert found["format_hacking"].numbers["share of answers with the phrase, first step"] < 0.3
    assert not found["format_hacking"].thin and "length_hacking" not in found


@pytest.mark.slow
def test_rewards_that_are_the_same_within_a_prompt(model: Path, tmp_path: Path) -> None:
    """And a limit that cuts most answers."""
    found = findings(model, tmp_path, SAME, num_episodes=10, actor_learning_rate=1e-3)
    assert found["dead_groups"].numbers["share of dead groups, last steps"] == 1
    assert found["dead_groups"].numbers["of these with the highest reward (too easy)"] == 0.5
    assert list(found) == ["dead_groups", "truncation"]  # and no word of the learning rate
    assert found["truncation"].numbers["share truncated, last fifth"] > 0.8 and found["truncation"].samples


@pytest.mark.slow
def test_a_learning_rate_that_breaks_the_policy(model: Path, tmp_path: Path) -> None:
    small = {"train_batch_size": 16, "micro_train_batch_size": 16}
    found = findings(model, tmp_path, LETTERS, num_episodes=12, actor_learning_rate=0.3, **small)
    assert found["learning_rate_too_high"].numbers["ppo_kl, worst fifth"] > 1
    assert found["learning_rate_too_high"].numbers["highest lr"] == 0.3
    assert found["entropy_collapse"].numbers["entropy, last fifth"] < 0.02
    assert "learning_rate_too_low" not in found


@pytest.mark.slow
def test_a_learning_rate_that_does_nothing_and_rewards_that_fail(model: Path, tmp_path: Path) -> None:
    given = {"num_episodes": 10, "actor_learning_rate": 1e-9, "on_reward_failure": "drop"}
    found = findings(model, tmp_path, BROKEN, **given)
    assert found["learning_rate_too_low"].numbers["largest kl per token"] < 1e-5
    assert found["invalid_rewards"].numbers["share left out, last fifth"] == 0.25
    assert "learning_rate_too_high" not in found


@pytest.mark.slow
def test_samples_of_older_weights(model: Path, tmp_path: Path) -> None:
    """What an engine that is not brought up to date looks like."""
    found = findings(model, tmp_path, LETTERS, num_episodes=14, async_train=True, async_queue_size=4)
    assert next(iter(found)) == "engine_mismatch"
    assert found["engine_mismatch"].numbers["staleness in updates, last fifth"] == 4
    assert found["engine_mismatch"].samples
