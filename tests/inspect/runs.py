"""Run folders without a run: steps and samples with the numbers that a test wants."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from openrlhf.config.commands import PPOConfig
from openrlhf.config.parse import read, write_yaml
from openrlhf.training.sample_file import StoredSample, StoredStep, Turn, step_path, write_step

FLAGS = {
    "pretrain": "m", "prompt_data": "p", "remote_rm_url": "r.py", "advantage_estimator": "group_norm", "local": True,
    "n_samples_per_prompt": 4, "rollout_batch_size": 2, "train_batch_size": 8, "micro_train_batch_size": 8,
}  # fmt: skip


def write_run(
    folder: Path,
    lines: Iterable[Mapping[str, float]] = (),
    steps: Iterable[StoredStep] = (),
    flags: Mapping[str, Any] | None = None,
) -> Path:
    """A folder as a run leaves it: one line a step, from step 1 on, and samples."""
    folder.mkdir(parents=True, exist_ok=True)
    text = [json.dumps({"step": number, **line}) + "\n" for number, line in enumerate(lines, start=1)]
    (folder / "metrics.jsonl").write_text("".join(text), encoding="utf-8")
    given = {**FLAGS, **(flags or {})}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    write_yaml(read(PPOConfig, words), folder / "run_config.yaml")
    (folder / "samples").mkdir(exist_ok=True)
    for step in steps:
        write_step(step_path(folder / "samples", step.step), step)
    return folder


def sample(row: int, reward: float = 0.0, answer: str = "yes", **given: Any) -> StoredSample:
    """One token a character of prompt and answer; four samples a group unless said otherwise."""
    prompt = given.pop("prompt", f"ask {row // 4}")
    tokens = torch.tensor([ord(c) for c in prompt + answer])
    mask = torch.arange(len(tokens)) >= len(prompt)
    group = given.pop("group", row // 4)
    per_token = {name: mask * value for name, value in given.pop("per_token", {}).items()}
    return StoredSample(
        row=row,
        prompt_id=given.pop("prompt_id", group),
        group=group,
        turns=[Turn(False, prompt), Turn(True, answer)],
        tokens=tokens,
        action_mask=mask,
        outcome=reward,
        reward=reward,
        parts={"function": reward},
        per_token=per_token,
        **given,
    )


def step_of(number: int, samples: list[StoredSample], rows: int | None = None) -> StoredStep:
    every = sorted({int(token) for s in samples for token in s.tokens})
    return StoredStep(number, rows or len(samples), 0.0, samples, {token: chr(token) for token in every})
