"""``openrlhf ppo --local`` stores samples, and ``openrlhf replay`` computes their step again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from openrlhf.cli import replay
from openrlhf.cli.train_ppo_ray import main
from openrlhf.training.sample_file import read_step, step_path, stored_steps, write_step
from tests.recipes.helpers import metrics, run, write_rows

REWARD = """
def reward_func(queries, prompts, labels):
    rewards = [sum(c.isalnum() for c in q[len(p):]) / 6 for q, p in zip(queries, prompts)]
    return {"rewards": rewards, "extra_logs": {"labels": [float(label) for label in labels]}}
"""


@pytest.fixture(scope="module")
def flags(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three steps of 16 samples, 12 of which are stored."""
    folder = tmp_path_factory.mktemp("samples")
    (folder / "reward.py").write_text(REWARD)
    prompts = [{"input": f"say {i}:", "label": i} for i in range(4)]
    return {
        "local": True, "pretrain": tiny_folder, "prompt_data": write_rows(folder / "prompts.jsonl", prompts),
        "label_key": "label", "remote_rm_url": folder / "reward.py", "rollout_batch_size": 4,
        "n_samples_per_prompt": 4, "train_batch_size": 16, "micro_train_batch_size": 16, "temperature": 0.7,
        "micro_rollout_batch_size": 16, "generate_max_len": 6, "num_episodes": 3, "actor_learning_rate": 1e-3,
        "advantage_estimator": "group_norm", "use_kl_loss": True, "kl_estimator": "k3", "samples_per_step": 12,
        "save_path": folder / "out",
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(flags: dict[str, Any]) -> Path:
    return run(main, flags)


def test_a_step_holds_what_the_models_said(folder: Path, flags: dict[str, Any]) -> None:
    """The log-probs against a forward of the model that the run began with, in plain Transformers."""
    assert stored_steps(folder / "samples") == [1, 2, 3]
    step = read_step(step_path(folder / "samples", 1))
    assert (len(step.samples), step.rows) == (12, 16)
    tokenizer = AutoTokenizer.from_pretrained(flags["pretrain"])
    start = AutoModelForCausalLM.from_pretrained(flags["pretrain"])
    for sample in step.samples:
        prompt, answer = sample.turns
        assert prompt.text == f"say {sample.prompt_id}:" and sample.label == str(sample.prompt_id)
        assert not prompt.policy and answer.policy
        assert answer.text == tokenizer.decode(sample.tokens[sample.action_mask])
        assert sample.extras == {"labels": float(sample.prompt_id)} and sample.weight_version == 0
        with torch.no_grad():
            scores = (start(sample.tokens[None]).logits[0] / flags["temperature"]).log_softmax(-1)
        expected = torch.cat([torch.zeros(1), scores[:-1].gather(1, sample.tokens[1:, None])[:, 0]])
        expected = expected * sample.action_mask
        for name in ("log_probs", "engine_log_probs", "ref_log_probs"):
            torch.testing.assert_close(sample.per_token[name], expected, rtol=1e-4, atol=1e-4)


def test_storing_changes_no_number_of_the_run(folder: Path, flags: dict[str, Any], tmp_path: Path) -> None:
    without = run(main, flags | {"samples_per_step": 0, "save_path": tmp_path / "without"})
    assert metrics(without) == metrics(folder)
    assert not (without / "samples").exists()


def test_replay_says_that_all_agrees(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in ("1", "3"):
        replay.main([str(folder), step])
        shown = capsys.readouterr().out
        assert "12 of 16 samples" in shown and shown.endswith("everything comes out as it was stored\n")


def test_replay_ends_with_1_at_the_first_field_that_differs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = step_path(folder / "samples", 2)
    step = read_step(path)
    bent = [replace(s, reward=s.reward + 1) if i == 3 else s for i, s in enumerate(step.samples)]
    write_step(path, replace(step, samples=bent))
    with pytest.raises(SystemExit) as ended:
        replay.main([str(folder), "2"])
    write_step(path, step)
    assert ended.value.code == 1
    assert f"reward DIFFERS at sample 2:{step.samples[3].row}" in capsys.readouterr().out


def test_replay_says_what_is_missing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, sentence in [
        ([str(tmp_path), "1"], "is no run folder"),
        ([str(folder), "9"], "has no samples of step 9: there are those of 3 steps, 1 to 3"),
    ]:
        with pytest.raises(SystemExit) as ended:
            replay.main(words)
        assert ended.value.code == 2
        assert sentence in capsys.readouterr().err
