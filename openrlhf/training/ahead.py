"""Rollout batches that are asked for before the updates on those before them, and how old their samples are then."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from torch import Tensor

from openrlhf.data.sampler import Cursor
from openrlhf.rollout.engine import step_seed
from openrlhf.training.roles import Rollout
from openrlhf.types import Metrics, Prompt, Sample, present


@dataclass(frozen=True)
class Asked:
    """A rollout batch that is under way, for step ``step``; ``cursor`` is where the data stands after it."""

    step: int
    prompts: list[Prompt]
    cursor: Cursor
    samples: Future[list[Sample]]


def ask_ahead(
    engines: Rollout, prompt_batches: Iterable[tuple[list[Prompt], Cursor]], seed: int, first: int, ahead: int
) -> Iterator[Asked]:
    """The rollout of each step from ``first`` on, once ``ahead`` more have been asked for.

    So with ``ahead`` 1 the rollout of step k + 1 is asked for before the update of step k, and its samples are of the
    weights after step k − 1.
    """
    waiting: deque[Asked] = deque()
    for step, (prompts, cursor) in enumerate(prompt_batches, start=first):
        waiting.append(Asked(step, prompts, cursor, engines.collect(prompts, step_seed(seed, step))))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


def fresh(samples: list[Sample], step: int, most: int | None) -> list[Sample]:
    """Those without a token that is more than ``most`` updates older than the policy that step ``step`` finds, all
    without a bound.

    Raises ValueError when there are none.
    """
    kept = [s for s in samples if most is None or int(ages(s, step).max()) <= most]
    if not kept:
        raise ValueError(
            f"step {step}: all {len(samples)} samples are older than --max_staleness {most}: raise it, or lower "
            "--async_queue_size."
        )
    return kept


def ages(sample: Sample, step: int) -> Tensor:
    """For each token of the policy in ``sample``, how many updates the policy that step ``step`` finds has had since it
    was drawn."""
    return step - 1 - versions(sample)


def versions(sample: Sample) -> Tensor:
    """Of each token of the policy."""
    return present(sample.weight_versions, "weight versions")[sample.action_mask]


def staleness(samples: list[Sample], step: int) -> Metrics:
    """Over all tokens of the policy."""
    of_each = torch.cat([present(sample.weight_versions, "weight versions") for sample in samples])
    every = of_each[torch.cat([sample.action_mask for sample in samples])].double()
    now = step - 1
    return {
        "weight_version": float(every.mean()),
        "staleness": now - float(every.mean()),
        "staleness_max": now - float(every.min()),
    }


def mixed(samples: list[Sample]) -> float:
    """The share of samples whose tokens are of several versions of the weights."""
    own = [versions(sample) for sample in samples]
    return sum(int(v.min()) < int(v.max()) for v in own) / len(own)
