"""How a run learns, evaluates and saves."""

from __future__ import annotations

from openrlhf.config.commands import TrainCommand, defaults, flat

# Those of transformers' schedulers that need no settings of their own.
SCHEDULERS = (
    "cosine_with_min_lr", "cosine_warmup_with_min_lr", "cosine", "cosine_with_restarts", "linear", "polynomial",
    "constant", "constant_with_warmup", "inverse_sqrt",
)  # fmt: skip


def scheduler(config: TrainCommand) -> None:
    name = config.optim.lr_scheduler
    if name not in SCHEDULERS:
        raise ValueError(f"--lr_scheduler {name!r} is not one of {', '.join(SCHEDULERS)}.")


def evaluation(config: TrainCommand) -> None:
    if config.data.eval_dataset is not None:
        return
    values, default = flat(config), defaults(type(config))
    for name in ("eval_steps", "eval_temperature", "eval_n_samples_per_prompt", "best_metric_key"):
        if name in values and values[name] != default[name]:
            raise ValueError(f"--{name} needs --eval_dataset to evaluate on.")


def checkpoints(config: TrainCommand) -> None:
    kept = config.checkpoint
    if kept.save_steps > 0 and kept.disable_ds_ckpt and not kept.save_hf_ckpt:
        raise ValueError("--disable_ds_ckpt leaves nothing to write every --save_steps: give --save_hf_ckpt too.")
    if kept.disable_ds_ckpt and kept.save_steps < 0:
        raise ValueError("--disable_ds_ckpt says what a checkpoint holds: give --save_steps too.")
    if kept.max_restarts > 0 and (kept.save_steps < 0 or kept.disable_ds_ckpt):
        raise ValueError("--max_restarts goes on from checkpoints: give --save_steps, and no --disable_ds_ckpt.")
    if kept.use_ds_universal_ckpt and not kept.load_checkpoint:
        raise ValueError("--use_ds_universal_ckpt says how a checkpoint is loaded: give --load_checkpoint too.")
