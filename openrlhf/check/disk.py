"""Whether the disks have room for what a run writes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from openrlhf.check.findings import Severity
from openrlhf.config.commands import PPOConfig, RMConfig, TrainCommand
from openrlhf.config.derived import critic_source, ema_beta
from openrlhf.models.folder import count_parameters
from openrlhf.models.load import load_config
from openrlhf.training.checkpoint_files import GIGABYTE

# Bytes of a trained weight in a checkpoint: itself and AdamW's two moments in float32, and its moving average.
STATE, AVERAGE = 12, 4


@dataclass(frozen=True)
class Space:
    """Bytes: of the folders at the end, of one checkpoint, and of all that ``--ckpt_path`` holds at most."""

    model: int
    checkpoint: int
    most: int


def check_disk(config: TrainCommand) -> None:
    """Raise ValueError when the disk of ``--save_path`` or ``--ckpt_path`` has no room for what is certain to come."""
    for severity, sentence in look_at_disk(config):
        if severity == "error":
            raise ValueError(sentence)


def look_at_disk(config: TrainCommand) -> Iterator[tuple[Severity, str]]:
    kept, space = config.checkpoint, needed(config)
    saves, checks = _existing(Path(kept.save_path)), _existing(Path(kept.ckpt_path))
    one = saves.stat().st_dev == checks.stat().st_dev
    free = shutil.disk_usage(saves).free
    yield "ok", f"--save_path {kept.save_path}: the model takes {_size(space.model)}, {_size(free)} are free"
    if free < space.model:
        yield (
            "error",
            f"--save_path {kept.save_path}: the trained model takes {_size(space.model)} and {_size(free)} are free "
            "there: make room, or name another folder",
        )
    if kept.save_steps < 0:
        return
    # What is there now gives way to what comes.
    room = shutil.disk_usage(checks).free + _held(Path(kept.ckpt_path)) - (space.model if one else 0)
    yield "ok", f"--ckpt_path {kept.ckpt_path}: a checkpoint takes {_size(space.checkpoint)}, all {_size(space.most)}"
    if room < space.checkpoint:
        yield (
            "error",
            f"--ckpt_path {kept.ckpt_path}: one checkpoint takes {_size(space.checkpoint)} and there is room for "
            f"{_size(max(0, room))}: make room, name another folder, or write none with --save_steps -1",
        )
    elif room < space.most:
        yield (
            "warning",
            f"--ckpt_path {kept.ckpt_path}: --max_ckpt_num {kept.max_ckpt_num} checkpoints and the one being written "
            f"take {_size(space.most)} and there is room for {_size(room)}: keep fewer, or name another folder",
        )


def needed(config: TrainCommand) -> Space:
    """Of the weights that learn, in what they are written; the log and the random numbers are small."""
    kept, settings = config.checkpoint, config.model
    width = 2 if settings.bf16 else 4
    policy = load_config(settings.pretrain, settings, "--pretrain")
    learns = count_parameters(policy, isinstance(config, RMConfig), settings).learns
    model, state = learns * width, learns * STATE
    if isinstance(config, PPOConfig):
        state += learns * AVERAGE if ema_beta(config) is not None else 0
        critic = critic_source(config)
        if critic is not None:
            values = count_parameters(load_config(critic.path, settings, "--critic_pretrain"), True, settings).learns
            state += values * STATE
            model += values * width if config.reward.save_value_network else 0
    checkpoint = (0 if kept.disable_ds_ckpt else state) + (model if kept.save_hf_ckpt else 0)
    most = min(kept.max_ckpt_num * checkpoint, max(checkpoint, kept.max_ckpt_mem * GIGABYTE)) + checkpoint
    return Space(model, checkpoint, most if kept.save_steps > 0 else 0)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _held(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def _size(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
