"""Statements about several ranks, over gloo: ``torchrun -m certificate.ranks MODELS OUT`` writes rows to OUT."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from certificate.engine import GradientEngine
from certificate.methods import METHODS, Method
from certificate.statements import worst
from certificate.steps import WHOLE, Error, Subject, largest_error, rank_step, step, subject
from certificate.table import Row
from openrlhf.backends.deepspeed import DeepSpeedForward, DeepSpeedTrain, init_distributed
from openrlhf.backends.local import LocalForward
from openrlhf.config.groups import DeepSpeedConfig, ModelConfig, OptimConfig, TrainConfig
from openrlhf.training.fit import rank_part
from openrlhf.training.roles import StepStats

SEEDS = (0, 1)
STAGES = (0, 1, 2, 3)


def main(models: Path, out: Path, measure: Callable[[Path], Iterable[Row]]) -> None:
    torch.set_num_threads(1)
    init_distributed(timedelta(seconds=60))
    rows = list(measure(models))
    if dist.get_rank() == 0:
        out.write_text(json.dumps([asdict(row) for row in rows]))
    dist.barrier()
    dist.destroy_process_group()


def every_row(models: Path) -> Iterator[Row]:
    yield from data_parallel_rows(models, METHODS)
    yield from zero_rows(models, METHODS)
    yield from ring_rows(models, METHODS)


def data_parallel_rows(models: Path, methods: Mapping[str, Method]) -> Iterator[Row]:
    for name, method in methods.items():
        error = worst(*(data_parallel(subject(method, models), seed) for seed in SEEDS))
        yield Row("I2", "two ranks over gloo = one", name, error.gradient, error.metrics, 1e-6)


def data_parallel(subject: Subject, seed: int) -> Error:
    """Eight examples, and seven: then a rank gets one without loss."""
    errors = []
    for examples in (8, 7):
        batch = subject.method.examples(seed).select(range(examples * subject.method.rows))
        engine = GradientEngine(subject.model, sum_over_ranks, dist.get_rank(), dist.get_world_size())
        errors.append(largest_error(subject.step(batch), rank_step(subject, engine, batch)))
    return worst(*errors)


def sum_over_ranks(x: Tensor) -> Tensor:
    total = x.clone()
    dist.all_reduce(total)
    return total


def zero_rows(models: Path, methods: Mapping[str, Method]) -> Iterator[Row]:
    for name, method in methods.items():
        config = ModelConfig(pretrain=str(models))
        error = worst(*(sharded(method, models, config, stage, (False, True)) for stage in STAGES))
        text = "ZeRO stages 0, 1, 2, 3 on two ranks = plain PyTorch on one, float32"
        yield Row("I5, ZeRO", text, name, error.gradient, error.metrics, 1e-5)


def ring_rows(models: Path, methods: Mapping[str, Method]) -> Iterator[Row]:
    """The two ranks share every row; ZeRO 3 divides the weights, too."""
    config = ModelConfig(pretrain=str(models), packing_samples=True, ring_attn_size=2)
    for name, method in methods.items():
        error = worst(*(sharded(method, models, config, stage, (True,)) for stage in (0, 3)))
        text = "a ring of two ranks, ZeRO stages 0 and 3 = plain PyTorch on one, float32"
        yield Row("I5, ring", text, name, error.gradient, error.metrics, 1e-5)


def sharded(method: Method, models: Path, config: ModelConfig, stage: int, packings: Sequence[bool]) -> Error:
    batch = method.examples(0)
    plain = GradientEngine(method.load(models, config))
    plain_frozen = frozen = None
    load_frozen = method.load_frozen
    if load_frozen is not None:
        plain_frozen = LocalForward(load_frozen(models, config))
        sharding = DeepSpeedConfig(zero_stage=stage)
        frozen = DeepSpeedForward(partial(load_frozen, models, config), config, sharding, offload=False)
    engine = DeepSpeedGradients(partial(method.load, models, config), config, stage)
    expected = step(method, plain, plain_frozen, batch, WHOLE, packed=False)
    rows = rank_part(batch, engine.rank, engine.world, method.rows)
    got = [step(method, engine, frozen, rows, 2, packed) for packed in packings]
    engine.engine.model.destroy()
    if frozen is not None:
        frozen.model.destroy()
    return largest_error(expected, *got)


class DeepSpeedGradients:
    """``DeepSpeedTrain`` at learning rate 0, which keeps the whole gradient of each step."""

    def __init__(self, build, config: ModelConfig, stage: int) -> None:
        self.engine = DeepSpeedTrain(
            build, config, OptimConfig(max_norm=0.0), TrainConfig(), DeepSpeedConfig(zero_stage=stage), 0.0, 1000
        )
        self.model, self.device = self.engine.model, self.engine.device
        self.rank, self.world = self.engine.rank, self.engine.world
        self.backward, self.sum_over_ranks = self.engine.backward, self.engine.sum_over_ranks
        self.gradients: list[Tensor] = []

    def step(self) -> StepStats:
        from deepspeed.utils import safe_get_full_grad

        whole = [(p, safe_get_full_grad(p)) for p in self.model.module.parameters()]
        self.gradients.append(
            torch.cat([torch.zeros(p.shape).flatten() if g is None else g.flatten() for p, g in whole])
        )
        return self.engine.step()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), every_row)
