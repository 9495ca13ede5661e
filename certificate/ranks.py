"""Statements about several ranks, over gloo: ``torchrun -m certificate.ranks MODELS OUT`` writes rows to OUT."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.zero.partition_parameters import is_zero_param
from deepspeed.utils import safe_get_full_grad
from torch import Tensor, nn

from certificate.engine import GradientEngine
from certificate.methods import ADAPTED, METHODS, Method, Trained
from certificate.statements import worst
from certificate.steps import WHOLE, Error, Outcome, Subject, largest_error, rank_step, step, subject
from certificate.table import Row
from openrlhf.backends.deepspeed import DeepSpeedForward, DeepSpeedTrain, init_distributed
from openrlhf.backends.deepspeed_tensor_parallel import cut_dimensions, whole
from openrlhf.backends.local import LocalForward
from openrlhf.config.groups import DeepSpeedConfig, ModelConfig, OptimConfig, TrainConfig
from openrlhf.training.fit import rank_part
from openrlhf.training.roles import StepStats
from openrlhf.types import Batch

SEEDS = (0, 1)
TOKENS = 30


def main(models: Path, out: Path, measure: Callable[[Path], Iterable[Row]]) -> None:
    torch.set_num_threads(1)
    init_distributed(timedelta(seconds=60))
    rows = list(measure(models))
    if dist.get_rank() == 0:
        out.write_text(json.dumps([asdict(row) for row in rows]))
    dist.barrier()
    dist.destroy_process_group()


def every_row(models: Path) -> Iterator[Row]:
    """AutoTP comes last: it leaves traces in DeepSpeed's globals."""
    yield from data_parallel_rows(models, METHODS)
    yield from zero_rows(models, METHODS)
    yield from ring_rows(models, METHODS)
    yield from tensor_rows(models, {name: METHODS[name] for name in METHODS if name not in ADAPTED})


def data_parallel_rows(models: Path, methods: Mapping[str, Method]) -> Iterator[Row]:
    for name, method in methods.items():
        error = worst(*(data_parallel(subject(method, models), seed) for seed in SEEDS))
        yield Row("I2", "two ranks over gloo = one", name, error.gradient, error.metrics, 1e-6)


def data_parallel(subject: Subject, seed: int) -> Error:
    """Eight examples, and seven: then a rank gets one without loss. In micro-batches of two, and of 30 tokens."""
    errors = []
    for examples in (8, 7):
        batch = subject.method.examples(seed).select(range(examples * subject.method.rows))
        engine = GradientEngine(subject.model, sum_over_ranks, dist.get_rank(), dist.get_world_size())
        parts = [rank_step(subject, engine, batch, tokens) for tokens in (None, TOKENS)]
        errors.append(largest_error(subject.step(batch), *parts))
    return worst(*errors)


def sum_over_ranks(x: Tensor) -> Tensor:
    total = x.clone()
    dist.all_reduce(total)
    return total


def zero_rows(models: Path, methods: Mapping[str, Method]) -> Iterator[Row]:
    text = "ZeRO stages 0, 1, 2, 3 on two ranks = plain PyTorch on one, float32"
    for name, method in methods.items():
        plans = [Plan(sharding=DeepSpeedConfig(zero_stage=stage)) for stage in range(4)]
        error = worst(*(planned(method, models, plan) for plan in plans))
        yield Row("I5, ZeRO", text, name, error.gradient, error.metrics, 1e-5)


def ring_rows(models: Path, methods: Mapping[str, Method]) -> Iterator[Row]:
    """The two ranks share every row; ZeRO 3 divides the weights, too."""
    text = "a ring of two ranks, ZeRO stages 0 and 3 = plain PyTorch on one, float32"
    for name, method in methods.items():
        ring = {"ring_attn_size": 2, "packing_samples": True}
        plans = [Plan(ring, DeepSpeedConfig(zero_stage=stage), packed=(True,)) for stage in (0, 3)]
        error = worst(*(planned(method, models, plan) for plan in plans))
        yield Row("I5, ring", text, name, error.gradient, error.metrics, 1e-5)


def tensor_rows(models: Path, methods: Mapping[str, Method]) -> Iterator[Row]:
    text = "layers cut in two (AutoTP), ZeRO stages 0 and 2 = plain PyTorch on one rank, float32"
    for name, method in methods.items():
        plans = [Plan(sharding=DeepSpeedConfig(zero_stage=stage, ds_tensor_parallel_size=2)) for stage in (0, 2)]
        error = worst(*(planned(method, models, plan) for plan in plans))
        yield Row("I5, tensor parallel", text, name, error.gradient, error.metrics, 1e-5)


@dataclass(frozen=True)
class Plan:
    """How two ranks share the work."""

    model: Mapping[str, Any] = field(default_factory=dict)  # flags of ModelConfig
    sharding: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    packed: tuple[bool, ...] = (False, True)


def planned(method: Method, models: Path, plan: Plan) -> Error:
    batch = method.examples(0)
    expected = alone(method, models, batch)
    config = ModelConfig(pretrain=str(models), **plan.model)
    frozen = None
    load_frozen = method.load_frozen
    if load_frozen is not None:
        frozen = DeepSpeedForward(partial(load_frozen, models, config), config, plan.sharding, offload=False)
    engine = DeepSpeedGradients(partial(method.load, models, config), config, plan.sharding)
    rows = rank_part(batch, engine.rank, engine.world, method.rows)
    got = [step(method, engine, frozen, rows, 2, packed, tokens) for packed in plan.packed for tokens in (None, TOKENS)]
    engine.engine.model.destroy()
    if frozen is not None:
        frozen.model.destroy()
    return largest_error(expected, *got)


def alone(method: Method, models: Path, batch: Batch) -> Outcome:
    """The whole batch in one piece in plain PyTorch, float32."""
    config = ModelConfig(pretrain=str(models))
    frozen = None if method.load_frozen is None else LocalForward(method.load_frozen(models, config))
    return step(method, GradientEngine(method.load(models, config)), frozen, batch, WHOLE, packed=False)


class DeepSpeedGradients:
    """``DeepSpeedTrain`` at learning rate 0, which keeps the whole gradient of each step."""

    def __init__(self, build: Callable[[], Trained], config: ModelConfig, sharding: DeepSpeedConfig) -> None:
        self.engine = DeepSpeedTrain(build, config, OptimConfig(max_norm=0.0), TrainConfig(), sharding, 0.0, 1000)
        self.model, self.device = self.engine.model, self.engine.device
        self.rank, self.world = self.engine.rank, self.engine.world
        self.backward, self.sum_over_ranks = self.engine.backward, self.engine.sum_over_ranks
        self.largest = self.engine.largest
        self.gradients: list[Tensor] = []

    def step(self) -> StepStats:
        module = self.model.module
        cut = cut_dimensions(module)
        self.gradients.append(
            torch.cat([whole_gradient(p, cut.get(name)).flatten() for name, p in module.named_parameters()])
        )
        return self.engine.step()


def whole_gradient(parameter: nn.Parameter, cut_along: int | None) -> Tensor:
    part = safe_get_full_grad(parameter) if parameter.requires_grad else None
    if part is None:  # of a weight that does not train, which may be sharded
        return torch.zeros(parameter.ds_numel if is_zero_param(parameter) else parameter.numel())  # type: ignore[attr-defined]
    return part if cut_along is None else whole(part, cut_along)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), every_row)
