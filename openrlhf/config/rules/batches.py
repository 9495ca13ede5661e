"""What divides what: samples, mini-batches, micro-batches, workers."""

from __future__ import annotations

import math

from openrlhf.config.commands import PPOConfig, TrainCommand, defaults, flat
from openrlhf.config.groups import TrainConfig


def micro_batches(config: TrainCommand) -> None:
    check_workers(config.train, 1, "")


def check_workers(train: TrainConfig, workers: int, where: str) -> None:
    """Raise ValueError when ``workers`` cannot share a mini-batch in whole micro-batches; ``where`` says whose."""
    micro = 1 if train.use_dynamic_batch else train.micro_train_batch_size
    part = micro * workers
    if train.train_batch_size % part:
        times = f" × {workers} workers{where}" if workers > 1 else ""
        of = f"{workers} workers{where}" if train.use_dynamic_batch else f"--micro_train_batch_size {micro}{times}"
        above = math.ceil(train.train_batch_size / part) * part
        raise ValueError(
            f"--train_batch_size {train.train_batch_size} is not a multiple of {of}: "
            f"choose for example --train_batch_size {above}."
        )


def token_budgets(config: TrainCommand) -> None:
    train, default, values = config.train, defaults(type(config)), flat(config)
    if train.use_dynamic_batch:
        if train.micro_train_batch_size != default["micro_train_batch_size"]:
            raise ValueError(
                "--micro_train_batch_size says how many samples go through the model at a time and --use_dynamic_batch "
                "that --train_max_tokens_per_gpu does: leave one of the two out."
            )
        return
    for name in ("train_max_tokens_per_gpu", "rollout_max_tokens_per_gpu"):
        if name in values and values[name] != default[name]:
            raise ValueError(f"--{name} is the size of what --use_dynamic_batch makes: give that too.")


def rollout_batch(config: PPOConfig) -> None:
    samples, train = samples_a_rollout(config), config.train.train_batch_size
    if samples % train:
        raise ValueError(
            f"--rollout_batch_size × --n_samples_per_prompt = {samples} samples are not a multiple of "
            f"--train_batch_size {train}: choose for example --train_batch_size {math.gcd(samples, train)}."
        )


def samples_a_rollout(config: PPOConfig) -> int:
    return config.rollout.rollout_batch_size * config.rollout.n_samples_per_prompt
