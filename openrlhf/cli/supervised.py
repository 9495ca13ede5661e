"""What the supervised commands have in common: say what was dropped, train, log, save."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openrlhf.config.commands import DPOConfig, KDConfig, KTOConfig, PRMConfig, RMConfig, SFTConfig
from openrlhf.config.parse import flat, write_yaml
from openrlhf.data.report import DropReport
from openrlhf.training.fit import Task, fit, total_steps
from openrlhf.training.log import RunLog
from openrlhf.training.roles import TrainEngine
from openrlhf.types import Sample

Supervised = SFTConfig | RMConfig | DPOConfig | KTOConfig | KDConfig | PRMConfig


def is_first() -> bool:
    """Whether this process writes and speaks. The launchers set RANK; a process alone is the first."""
    return os.environ.get("RANK", "0") == "0"


def say_what_was_dropped(report: DropReport, flag: str) -> None:
    if is_first() and (report.dropped or report.shortened):
        print(f"{flag}: {report.line()}")


def train(
    config: Supervised,
    title: str,
    engine: TrainEngine,
    task: Task,
    samples: Sequence[Sample],
    evaluation: Sequence[Sample],
    tokenizer: Any,
) -> None:
    """``fit`` with a log in ``--save_path``."""
    folder = Path(config.checkpoint.save_path)
    if is_first():
        write_yaml(config, folder / "run_config.yaml")
    log = RunLog(folder, config.log, flat(config), writes=is_first())
    log.start(total_steps(len(samples) // task.rows, config.train), title)
    try:
        fit(engine, task, samples, evaluation, config.train, config.log, log, tokenizer.pad_token_id)
    finally:
        log.close()


def save(config: Supervised, engine: TrainEngine, tokenizer: Any) -> None:
    """The model as a Hugging Face folder at ``--save_path``."""
    engine.save(Path(config.checkpoint.save_path), tokenizer)
    if is_first():
        print(f"saved the model to {config.checkpoint.save_path}")
