"""Rollout batches of prompts that teach: with ``--dynamic_filtering`` the others give way to new ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import count, islice

from openrlhf.config.groups import RolloutConfig
from openrlhf.data.sampler import Cursor
from openrlhf.rollout.engine import step_seed
from openrlhf.training.ahead import Asked
from openrlhf.training.roles import Rollout, done, gather
from openrlhf.types import Prompt, Sample

CLOSE = 1e-6  # a mean that is nearer to a bound of the range lies on it


@dataclass(frozen=True)
class Part:
    """Prompts of a step that were asked together; ``cursor`` is where the data stands after them."""

    prompts: list[Prompt]
    cursor: Cursor
    samples: Future[list[Sample]]


def ask_until_full(
    engines: Rollout,
    prompts: Iterable[tuple[list[Prompt], Cursor]],
    config: RolloutConfig,
    seed: int,
    first: int,
    deadline_s: float,
    ahead: bool = False,
) -> Iterator[Asked]:
    """The rollout of each step from ``first`` on (arXiv:2503.14476, section 3.2), until ``prompts``, which come one at
    a time, end.

    As many prompts are asked as are missing, until ``rollout_batch_size`` of them were kept. Where they end before, the
    kept ones are the last rollout; where none was kept, there is no rollout. With ``ahead`` the first prompts of a step
    are asked before the update of the one before it, those in the place of others when the step needs them.
    """
    stream = iter(prompts)
    begun: Part | None = None
    for step in count(first):
        part = begun or _ask(engines, stream, config.rollout_batch_size, step_seed(seed, step))
        rollout = None if part is None else _fill(engines, stream, config, seed, step, part, deadline_s)
        if rollout is None:
            return
        begun = _ask(engines, stream, config.rollout_batch_size, step_seed(seed, step + 1)) if ahead else None
        yield rollout


def _ask(engines: Rollout, stream: Iterable[tuple[list[Prompt], Cursor]], most: int, seed: int) -> Part | None:
    taken = list(islice(stream, most))
    if not taken:
        return None
    prompts = [prompt for (prompt,), _ in taken]
    return Part(prompts, taken[-1][1], engines.collect(prompts, seed))


def _fill(
    engines: Rollout,
    stream: Iterable[tuple[list[Prompt], Cursor]],
    config: RolloutConfig,
    seed: int,
    step: int,
    first: Part,
    deadline_s: float,
) -> Asked | None:
    asked: list[Prompt] = []
    samples: list[Sample] = []
    part: Part | None = first
    cursor = first.cursor
    for number in count(1):
        if part is None:
            break
        (new,) = gather(part.samples, deadline_s=deadline_s)
        chosen = informative(new, *config.dynamic_filtering_reward_range)
        for sample in chosen:
            sample.group += len(asked)
        samples, asked, cursor = samples + chosen, asked + part.prompts, part.cursor
        # The first part has the seed of a run that does not filter.
        missing = config.rollout_batch_size - groups(samples)
        part = _ask(engines, stream, missing, step_seed(seed, step, number))
    if not samples:
        print(f"--dynamic_filtering kept none of the last {len(asked)} prompts, and there are no more")
    return Asked(step, asked, cursor, done(samples)) if samples else None


def informative(samples: Sequence[Sample], low: float, high: float) -> list[Sample]:
    """The samples of the groups whose mean score lies inside the range: where all are right or all wrong, every
    advantage is 0. Raises ValueError when a sample has no score."""
    scores: dict[int, list[float]] = {}
    for sample in samples:
        if sample.score is None:
            raise ValueError("--dynamic_filtering needs a score of every sample: the agent or function gave none")
        scores.setdefault(sample.group, []).append(sample.score)
    means = {group: sum(own) / len(own) for group, own in scores.items()}
    return [sample for sample in samples if low + CLOSE < means[sample.group] < high - CLOSE]


def groups(samples: Sequence[Sample]) -> int:
    return len({sample.group for sample in samples})
