"""Rollout batches of prompts that teach: with ``--dynamic_filtering`` the others give way to new ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice

from openrlhf.config.groups import RolloutConfig
from openrlhf.data.sampler import Cursor
from openrlhf.training.ahead import Asked
from openrlhf.training.roles import Rollout, done, gather
from openrlhf.types import Prompt, Sample

CLOSE = 1e-6  # a mean that is nearer to a bound of the range lies on it


def ask_until_full(
    engines: Rollout,
    prompts: Iterable[tuple[list[Prompt], Cursor]],
    config: RolloutConfig,
    seed: int,
    first: int,
    deadline_s: float,
) -> Iterator[Asked]:
    """The rollout of each step from ``first`` on (arXiv:2503.14476, section 3.2), until ``prompts``, which come one at
    a time, end.

    As many prompts are asked as are missing, until ``rollout_batch_size`` of them were kept. Where they end before, the
    kept ones are the last rollout; where none was kept, there is no rollout.
    """
    stream = iter(prompts)
    for step in count(first):
        rollout = _ask(engines, stream, config, seed + step, step, deadline_s)
        if rollout is None:
            return
        yield rollout


def _ask(
    engines: Rollout,
    stream: Iterable[tuple[list[Prompt], Cursor]],
    config: RolloutConfig,
    seed: int,
    step: int,
    deadline_s: float,
) -> Asked | None:
    asked: list[Prompt] = []
    samples: list[Sample] = []
    kept, cursor = 0, Cursor()
    for part in count():
        taken = list(islice(stream, config.rollout_batch_size - kept))
        if not taken:
            break
        cursor, new_prompts = taken[-1][1], [prompt for (prompt,), _ in taken]
        # No step has the seeds of a later part; the first has those of a run that does not filter.
        (new,) = gather(engines.collect(new_prompts, seed + (part << 32)), deadline_s=deadline_s)
        chosen = informative(new, *config.dynamic_filtering_reward_range)
        kept += groups(chosen)
        for sample in chosen:
            sample.group += len(asked)
        samples, asked = samples + chosen, asked + new_prompts
    if asked and not samples:
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
