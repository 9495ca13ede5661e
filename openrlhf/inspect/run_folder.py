"""What a run leaves in its folder, read while it still writes there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from openrlhf.config.commands import PPOConfig
from openrlhf.config.parse import resolve
from openrlhf.training.sample_file import StoredStep, read_step, step_path, stored_steps
from openrlhf.training.samples import FOLDER

Line = dict[str, float]  # of metrics.jsonl: "step" and metrics by name


def check_run(run: Path) -> None:
    """Raises ValueError when ``run`` is no folder of a run."""
    if not (run / "metrics.jsonl").is_file():
        raise ValueError(f"{run} is no run folder: it has no metrics.jsonl; give what --save_path named.")


def read_metrics(run: Path) -> list[Line]:
    """The whole lines of ``metrics.jsonl``; one that is being written is left for later.

    Raises ValueError that names a line which is none.
    """
    path = run / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    return [_line(line, f"{path}: line {number}") for number, line in enumerate(lines, start=1) if line.endswith(b"\n")]


def _line(text: bytes, where: str) -> Line:
    try:
        line = json.loads(text)
    except ValueError:  # of text that is not UTF-8 too
        line = None
    if not isinstance(line, dict) or "step" not in line or any(type(x) not in (int, float) for x in line.values()):
        raise ValueError(f"{where} does not hold the metrics of a step: take it out to see the others.")
    return line


def read_flags(run: Path) -> dict[str, Any]:
    """The flags in ``run_config.yaml``, whatever command wrote them; none where there is no such file.

    Raises ValueError when it is not YAML.
    """
    path = run / "run_config.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    return content if isinstance(content, dict) else {}


def read_config(run: Path) -> PPOConfig:
    """The flags of an RL run. Raises ValueError when they are not there."""
    return resolve(PPOConfig, ["--config", str(run / "run_config.yaml")])


def steps_of(run: Path) -> list[int]:
    """The steps with stored samples."""
    return stored_steps(run / FOLDER)


def stored(run: Path, step: int) -> StoredStep:
    """The samples of a step. Raises ValueError, naming the steps there are, when it has none."""
    path = step_path(run / FOLDER, step)
    if not path.is_file():
        steps = steps_of(run)
        there = f"there are those of {len(steps)} steps, {steps[0]} to {steps[-1]}" if steps else "there are none"
        raise ValueError(f"{run} has no samples of step {step}: {there}; --samples_per_step says how many are stored.")
    return read_step(path)
