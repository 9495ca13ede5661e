"""What a command does first in its process: seeds, and quiet libraries."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryFile

import datasets
import transformers

from openrlhf.config.groups import CheckpointConfig, TrainConfig
from openrlhf.training.seeds import seed_process


def check_folders(checkpoint: CheckpointConfig) -> None:
    """Raise ValueError when ``--save_path``, or ``--ckpt_path`` where there are checkpoints, cannot be written."""
    check_folder("--save_path", Path(checkpoint.save_path))
    if checkpoint.save_steps > 0:
        check_folder("--ckpt_path", Path(checkpoint.ckpt_path))


def check_folder(flag: str, folder: Path) -> None:
    """Raise ValueError when the folder of ``flag`` cannot be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{flag} {folder} cannot be written ({error.strerror}): name another folder.") from error


def prepare_process(train: TrainConfig) -> None:
    """``--seed`` and ``--full_determinism``; and no bars of other libraries between the lines of ours."""
    quiet_libraries()
    seed_process(train)


def quiet_libraries() -> None:
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
