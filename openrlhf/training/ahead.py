"""Rollout batches that are asked for before the updates on those before them, and how old their samples are then."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from openrlhf.data.sampler import Cursor
from openrlhf.training.roles import Rollout
from openrlhf.types import Metrics, Prompt, Sample


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
        waiting.append(Asked(step, prompts, cursor, engines.collect(prompts, seed + step)))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


def fresh(samples: list[Sample], step: int, most: int | None) -> list[Sample]:
    """Those that are at most ``most`` updates older than the policy that step ``step`` finds, all without a bound.

    Raises ValueError when there are none.
    """
    kept = [s for s in samples if most is None or age(s, step) <= most]
    if not kept:
        raise ValueError(f"step {step}: all {len(samples)} samples are older than --max_staleness {most}; raise it.")
    return kept


def age(sample: Sample, step: int) -> int:
    """How many updates the policy that step ``step`` finds has had since ``sample`` was drawn."""
    return step - 1 - sample.weight_version


def staleness(samples: list[Sample], step: int) -> Metrics:
    ages = [age(sample, step) for sample in samples]
    return {"staleness": sum(ages) / len(ages), "staleness_max": float(max(ages))}
