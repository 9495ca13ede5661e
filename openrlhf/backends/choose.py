"""Which backend trains a model outside Ray: DeepSpeed under a launcher, plain torch in a single process."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from openrlhf.backends.local import LocalForward, LocalTrain
from openrlhf.backends.shared import SharedForward
from openrlhf.config.derived import needs_deepspeed, starts_from
from openrlhf.config.groups import DeepSpeedConfig, ModelConfig, OptimConfig, TrainConfig
from openrlhf.models.causal_lm import CausalLM
from openrlhf.models.load import load_causal_lm
from openrlhf.models.teacher import Teacher
from openrlhf.models.value_head import ScoreModel
from openrlhf.training.roles import ForwardEngine, TrainEngine


def choose_train_engine(
    build: Callable[[], CausalLM | ScoreModel],
    model: ModelConfig,
    optim: OptimConfig,
    train: TrainConfig,
    sharding: DeepSpeedConfig,
    learning_rate: float,
    total_steps: int,
) -> TrainEngine:
    """Raises ValueError in a single process when a flag is set that only DeepSpeed can serve."""
    if "WORLD_SIZE" in os.environ:  # set by `deepspeed --module` and `torchrun -m`
        from openrlhf.backends.deepspeed import DeepSpeedTrain

        return DeepSpeedTrain(build, model, optim, train, sharding, learning_rate, total_steps)
    check_alone(model, sharding)
    return LocalTrain(build().to(_device()), optim, learning_rate, total_steps, model.bf16)


def check_alone(model: ModelConfig, sharding: DeepSpeedConfig) -> None:
    """Raise ValueError when a single process is asked for what only several, or DeepSpeed, can do."""
    if (ranks := model.ring_attn_size) > 1:
        raise ValueError(
            f"--ring_attn_size {ranks} needs {ranks} processes: start the module with "
            f"`torchrun --nproc_per_node {ranks} -m` (or deepspeed --module) instead of python"
        )
    if changed := needs_deepspeed(sharding):
        raise ValueError(
            f"{', '.join(changed)} needs DeepSpeed: start the module with `deepspeed --module` "
            "(or torchrun -m) instead of python"
        )


def choose_forward_engine(
    build: Callable[[], CausalLM | ScoreModel | Teacher],
    model: ModelConfig,
    sharding: DeepSpeedConfig,
    offload: bool,
    offload_flag: str = "--ref_offload",
) -> ForwardEngine:
    """A frozen model on the same backend. Raises ValueError in a single process for ``offload``."""
    if "WORLD_SIZE" in os.environ:
        from openrlhf.backends.deepspeed import DeepSpeedForward

        return DeepSpeedForward(build, model, sharding, offload)
    if offload:
        raise ValueError(f"{offload_flag} needs DeepSpeed: start with `deepspeed --module` (or torchrun -m)")
    return LocalForward(build().to(_device()), model.bf16)


def choose_reference_engine(
    policy: TrainEngine, source: str, model: ModelConfig, sharding: DeepSpeedConfig, offload: bool
) -> ForwardEngine:
    """The language model at ``source``, frozen. A policy that learns by an adapter holds the one it starts from."""
    if starts_from(model, source):
        return SharedForward(policy)
    return choose_forward_engine(lambda: load_causal_lm(source, model, "--ref_pretrain"), model, sharding, offload)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
