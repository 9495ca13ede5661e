"""Faults planted in real little runs are what ``openrlhf diagnose`` finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from openrlhf.cli.train_ppo_ray import main
from openrlhf.inspect.diagnose import diagnose
from openrlhf.inspect.evidence import gather_evidence
from openrlhf.inspect.rules import Finding
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


def findings(tmp_path: Path, reward: str, **given: Any) -> dict[str, Finding]:
    build_model(tmp_path / "bytes", vocab_size=len(build_tokenizer(tmp_path / "bytes")))
    (tmp_path / "reward.py").write_text(reward)
    prompts = [{"input": f"say {i}:", "label": i} for i in range(8)]
    flags = {
        "local": True, "pretrain": tmp_path / "bytes", "prompt_data": write_rows(tmp_path / "prompts.jsonl", prompts),
        "label_key": "label", "remote_rm_url": tmp_path / "reward.py", "rollout_batch_size": 8,
        "n_samples_per_prompt": 8, "train_batch_size": 64, "micro_train_batch_size": 64, "generate_max_len": 12,
        "micro_rollout_batch_size": 64, "num_episodes": 16, "lr_scheduler": "constant", "actor_learning_rate": 2e-2,
        "init_kl_coef": 0.001, "advantage_estimator": "group_norm", "save_path": tmp_path / "out",
    }  # fmt: skip
    return {finding.rule: finding for finding in diagnose(gather_evidence(run(main, flags | given))).findings}


@pytest.mark.slow
def test_a_reward_for_brevity(tmp_path: Path) -> None:
    found = findings(tmp_path, SHORT, num_episodes=24)
    assert "shorter answers" in found["length_hacking"].what
    assert "kl_runaway" in found  # the learning rate of 2e-2 sees to that
    assert found["length_hacking"].numbers["response_length, last fifth"] < 3
    assert "entropy_collapse" in found and "truncation" not in found


@pytest.mark.slow
def test_rewards_that_are_the_same_within_a_prompt(tmp_path: Path) -> None:
    found = findings(tmp_path, SAME, num_episodes=10, actor_learning_rate=1e-3)
    assert found["dead_groups"].numbers["share of dead groups, last steps"] == 1
    assert found["dead_groups"].numbers["of these with the highest reward (too easy)"] == 0.5
    assert next(iter(found)) == "dead_groups"
