"""One step of a method through the real update, and how far two of them are apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from certificate.engine import GradientEngine
from certificate.methods import Method, Trained
from certificate.norms import Model, with_exact_norms
from openrlhf.backends.local import LocalForward
from openrlhf.config.groups import ModelConfig
from openrlhf.training.fit import rank_part
from openrlhf.training.micro_batches import TokenBudget
from openrlhf.training.roles import ForwardEngine, StepEngine
from openrlhf.training.update import optimizer_step
from openrlhf.types import Batch, Metrics

WHOLE = 10**6  # a micro-batch of all examples


class KeepsGradients(StepEngine, Protocol):
    gradients: list[Tensor]


@dataclass(frozen=True)
class Outcome:
    gradient: Tensor  # (P,)
    metrics: Metrics


@dataclass(frozen=True)
class Error:
    """How far outcomes are from what they should be: parts of the largest entry of the gradient, and of each number
    of the log (of 1, where it is smaller)."""

    gradient: float
    metrics: float


@dataclass(frozen=True)
class Subject:
    """A method with its models at hand, in float64 and in this process."""

    method: Method
    model: Trained
    frozen: ForwardEngine | None

    def step(
        self,
        batch: Batch,
        micro: int = WHOLE,
        packed: bool = False,
        model: nn.Module | None = None,
        tokens: int | None = None,
    ) -> Outcome:
        return step(self.method, GradientEngine(model or self.model), self.frozen, batch, micro, packed, tokens)


def load_subject(method: Method, folder: Path) -> Subject:
    config = ModelConfig(pretrain=str(folder))
    frozen = None if method.load_frozen is None else LocalForward(exact(method.load_frozen(folder, config)))
    return Subject(method, exact(method.load(folder, config)), frozen)


def exact(model: Model) -> Model:
    return with_exact_norms(model.double())


subject = cache(load_subject)


def rank_step(subject: Subject, engine: KeepsGradients, batch: Batch, tokens: int | None = None) -> Outcome:
    """One of several ranks' part in a step on ``batch``, in micro-batches of two examples or of ``tokens``."""
    rows = rank_part(batch, engine.rank, engine.world, subject.method.rows)
    return step(subject.method, engine, subject.frozen, rows, 2, False, tokens)


def step(
    method: Method,
    engine: KeepsGradients,
    frozen: ForwardEngine | None,
    batch: Batch,
    micro: int,
    packed: bool,
    tokens: int | None = None,
) -> Outcome:
    """Measure in micro-batches of ``micro`` examples, then one optimizer step in the same or in those of ``tokens``."""
    ready = method.prepare(batch, engine, frozen, micro, packed)
    return prepared_step(method, engine, frozen, ready, micro, packed, tokens)


def prepared_step(
    method: Method,
    engine: KeepsGradients,
    frozen: ForwardEngine | None,
    batch: Batch,
    micro: int,
    packed: bool,
    tokens: int | None = None,
) -> Outcome:
    objective = method.objective(None if frozen is None else frozen.model, packed)
    size = micro * method.rows if tokens is None else TokenBudget(tokens, packed, method.rows)
    metrics = optimizer_step(engine, batch, objective, size, method.weigh)
    return Outcome(engine.gradients.pop(), metrics)


def largest_error(expected: Outcome, *others: Outcome) -> Error:
    """Raises RuntimeError for a gradient that is too small to tell anything."""
    scale = float(expected.gradient.abs().max())
    if not scale > 1e-3:
        raise RuntimeError(f"the gradient's largest entry is {scale}: nothing would be compared")
    return Error(
        max(relative(other.gradient, expected.gradient, scale) for other in others),
        max(
            relative(torch.tensor(other.metrics[name]), torch.tensor(value), max(1.0, abs(value)))
            for other in others
            for name, value in expected.metrics.items()
        ),
    )


def relative(got: Tensor, expected: Tensor, scale: float) -> float:
    """The largest difference as a part of ``scale``; infinite when there is a NaN."""
    worst = float((got - expected).abs().max()) / scale
    return worst if math.isfinite(worst) else math.inf
