"""The verbs of a run, as protocols: what the loops may ask of a model, wherever it lives.

A *role* (actor, critic, reference, reward model, rollout) answers a verb with a ``Future``: in one process the work is
done when the call returns, on a cluster it runs elsewhere meanwhile. ``gather`` waits for several and raises the first
failure at once. A role that a run does not need is ``Absent`` and answers None.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from openrlhf.rollout.waiting import waited_for
from openrlhf.training.busy import BusyClock
from openrlhf.types import Batch, Metrics, Prompt, Sample

T = TypeVar("T")


class PartLost(RuntimeError):
    """A process of the run died or hangs. What it held is lost: the run ends, and a new start goes on from the last
    checkpoint."""


@dataclass(frozen=True)
class StepStats:
    """One optimizer step: global gradient norm before clipping, learning rate that was used."""

    grad_norm: float
    lr: float
    skipped: bool = False  # on all processes alike: a gradient was not finite, and nothing has changed


class Engine(Protocol):
    """A model on this process's hardware."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def device(self) -> torch.device: ...

    def largest(self, number: int) -> int:
        """Of what the processes of this model say. Collective."""
        ...


class ForwardEngine(Engine, Protocol):
    """A frozen model."""

    def offload(self) -> None:
        """Move what the device holds to host memory until ``onload``."""
        ...

    def onload(self) -> None: ...


class StepEngine(Engine, Protocol):
    """What an optimizer step needs of a model in training."""

    rank: int  # data-parallel: whose rows this process has. Processes that share rows have the same rank.
    world: int  # data-parallel ranks

    def backward(self, loss: Tensor, last: bool) -> None:
        """Accumulate the gradient of ``loss``; the step sees the sum over data-parallel ranks and micro-batches.

        ``last`` marks the last micro-batch before ``step``. Every rank calls it equally often.
        """
        ...

    def step(self) -> StepStats:
        """Clip, update, advance the schedule; then forget the gradient.

        Where it is not finite on any process, all of them leave weights, moments and schedule as they are.
        """
        ...

    def sum_over_ranks(self, x: Tensor) -> Tensor:
        """Over data-parallel ranks: what processes that share rows hold alike counts once."""
        ...


class TrainEngine(StepEngine, ForwardEngine, Protocol):
    """One process of a model in training. ``save`` and ``full_weights`` are collective."""

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Hugging Face names and whole tensors: gathered when they are sharded, with an adapter added into them."""
        ...

    def save(self, folder: Path, tokenizer: Any) -> None:
        """Write a Hugging Face folder."""
        ...

    def anywhere(self, here: bool) -> bool:
        """Whether any process of this model says so, those that share rows too. Collective."""
        ...

    def state(self) -> dict[str, Any]:
        """What this process must find again to go on: trained weights, moments, schedule, as tensors on the CPU and
        numbers. ``rank`` numbers the process, ``tensor_parallel`` is how many share each matrix, ``layout`` says in
        words how the state is divided."""
        ...

    def load_state(self, saved: Sequence[Mapping[str, Any]]) -> None:
        """Go back to a state, of which ``saved`` are the parts of all processes that there were. Collective.

        Raises ValueError when it is that of another model.
        """
        ...


class Actor(Protocol):
    def log_probs(self, batch: Batch) -> Future[Tensor]:
        """(B, T) float32, on the CPU."""
        ...

    def update(self, batch: Batch, kl_coef: float) -> Future[Metrics]: ...

    def save_state(self, state: Path | None, weights: Path | None) -> Future[str | None]:
        """Its part of a checkpoint and its model, as in ``training/checkpoints.py``."""
        ...

    def load_state(self, state: Path, redistribute: bool) -> Future[str | None]: ...


class Critic(Protocol):
    def values(self, batch: Batch) -> Future[Tensor | None]:
        """(B, T) float32, on the CPU."""
        ...

    def update(self, batch: Batch) -> Future[Metrics | None]: ...

    def save_state(self, state: Path | None, weights: Path | None) -> Future[str | None]:
        """Its part of a checkpoint and its model, as in ``training/checkpoints.py``."""
        ...

    def load_state(self, state: Path, redistribute: bool) -> Future[str | None]: ...


class Reference(Protocol):
    def log_probs(self, batch: Batch) -> Future[Tensor | None]: ...


class RewardModels(Protocol):
    def rewards(self, batch: Batch) -> tuple[Future[Tensor], ...]:
        """Of each model (B,) float32, on the CPU."""
        ...


class Rollout(Protocol):
    def collect(self, prompts: list[Prompt], seed: int) -> Future[list[Sample]]:
        """``n_samples_per_prompt`` samples a prompt, next to each other, in the order of the prompts."""
        ...

    def evaluate(self, prompts: list[Prompt], seed: int) -> Future[list[Sample]]:
        """As ``collect``, with the number of samples and the temperature of an evaluation."""
        ...

    def sync(self, version: int) -> Future[None]:
        """Bring the actor's weights into the engines."""
        ...


class Absent:
    """A role the run does without: every verb answers None."""

    def log_probs(self, batch: Batch) -> Future[Tensor | None]:
        return done(None)

    def values(self, batch: Batch) -> Future[Tensor | None]:
        return done(None)

    def rewards(self, batch: Batch) -> tuple[Future[Tensor], ...]:
        return ()

    def update(self, batch: Batch) -> Future[Metrics | None]:
        return done(None)

    def save_state(self, state: Path | None, weights: Path | None) -> Future[str | None]:
        return done(None)

    def load_state(self, state: Path, redistribute: bool) -> Future[str | None]:
        return done(None)


@dataclass(frozen=True)
class Roles:
    rollout: Rollout
    actor: Actor
    critic: Critic
    reference: Reference
    reward: RewardModels
    busy: BusyClock = field(default_factory=BusyClock)


def done(value: T) -> Future[T]:
    """A future that already holds its value."""
    future: Future[T] = Future()
    future.set_result(value)
    return future


def gather(*futures: Future[Any], deadline_s: float) -> list[Any]:
    """The results, in order.

    Raises the exception of the first future that fails as soon as it fails, and TimeoutError after ``deadline_s``
    and a little: a call across processes has the same deadline and names who is late, so it should speak first.
    """
    finished, waiting = concurrent.futures.wait(
        futures, timeout=1.05 * deadline_s, return_when=concurrent.futures.FIRST_EXCEPTION
    )
    for future in finished:
        if (failure := future.exception(timeout=0)) is not None:
            raise failure
    if waiting:
        outside = f", waiting for {waits}" if (waits := waited_for()) else ""
        raise TimeoutError(f"{len(waiting)} of {len(futures)} calls did not answer within {deadline_s:.0f} s{outside}")
    return [future.result(timeout=0) for future in futures]
