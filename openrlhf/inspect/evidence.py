"""What a diagnosis looks at: metrics, samples of the beginning, the middle and the end, flags; and plain statistics."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from openrlhf.inspect.run_folder import Line, read_flags, read_metrics, steps_of, stored
from openrlhf.training.sample_file import StoredSample, StoredStep

ENDS = 5  # stored steps that are read at the beginning, in the middle and at the end of a run
FEW_STEPS, FEW_SAMPLES = 10, 32  # fewer are thin evidence
Named = tuple[str, StoredSample]  # with the sample's name


@dataclass(frozen=True)
class Evidence:
    """One run, as far as it is there. ``early`` and ``late`` may be the same steps in a short run."""

    lines: Sequence[Line]
    early: Sequence[StoredStep] = ()
    late: Sequence[StoredStep] = ()
    middle: Sequence[StoredStep] = ()
    flags: dict[str, Any] = field(default_factory=dict)
    skipped: Sequence[dict[str, Any]] = ()  # lines of skipped.jsonl

    def curve(self, name: str) -> list[float]:
        """The finite values of a metric, step after step."""
        return [line[name] for line in self.lines if name in line and math.isfinite(line[name])]

    @cached_property
    def last_samples(self) -> list[Named]:
        return named(self.late)

    @cached_property
    def own_score(self) -> bool:
        """Whether the reward function says how right an answer is, besides its reward."""
        given = [(s.score, s.parts["function"]) for _, s in self.last_samples if s.score is not None and s.parts]
        return any(not math.isclose(score, reward, rel_tol=1e-5, abs_tol=1e-6) for score, reward in given)

    def thin(self, samples: bool = False) -> str:
        """Why the evidence is thin, or nothing."""
        steps, stored_samples = len(self.lines), len(self.last_samples)
        if steps < FEW_STEPS:
            return f"only {steps} logged steps"
        if samples and stored_samples < FEW_SAMPLES:
            return f"only {stored_samples} stored samples in the last steps"
        return ""


def gather_evidence(run: Path) -> Evidence:
    """Raises ValueError for a file of samples that cannot be read."""
    steps = steps_of(run)
    between = steps[ENDS:-ENDS]
    middle = between[:: math.ceil(len(between) / ENDS) or 1]
    read = {step: stored(run, step) for step in dict.fromkeys(steps[:ENDS] + middle + steps[-ENDS:])}
    skips = run / "skipped.jsonl"
    lines = skips.read_text(encoding="utf-8").splitlines(keepends=True) if skips.is_file() else []
    return Evidence(
        lines=read_metrics(run),
        early=[read[step] for step in steps[:ENDS]],
        late=[read[step] for step in steps[-ENDS:]],
        middle=[read[step] for step in middle],
        flags=read_flags(run),
        skipped=[json.loads(line) for line in lines if line.endswith("\n")],
    )


def named(steps: Iterable[StoredStep]) -> list[Named]:
    return [(step.name_of(sample), sample) for step in steps for sample in step.samples]


def groups(steps: Iterable[StoredStep]) -> Iterator[list[Named]]:
    """The stored samples of each group of more than one."""
    for step in steps:
        of: dict[int, list[Named]] = {}
        for name, sample in named([step]):
            of.setdefault(sample.group, []).append((name, sample))
        yield from (members for members in of.values() if len(members) > 1)


def ends(values: Sequence[float]) -> tuple[float, float]:
    """The mean of the first and of the last fifth."""
    part = max(1, len(values) // 5)
    return fmean(values[:part]), fmean(values[-part:])


def worst_fifth(values: Sequence[float]) -> float:
    """The highest mean over as many values in a row as a fifth of them."""
    part = max(1, len(values) // 5)
    return max(fmean(values[start : start + part]) for start in range(len(values) - part + 1))


def length(sample: StoredSample) -> int:
    return int(sample.action_mask.sum())


def answer(sample: StoredSample) -> str:
    """What the policy wrote, its turns one after the other."""
    return "".join(turn.text for turn in sample.turns if turn.policy)


def mean_of(sample: StoredSample, name: str) -> float:
    """Over the tokens that the policy chose; not a number where there is no such column or no token."""
    values = sample.per_token.get(name)
    return math.nan if values is None or not sample.action_mask.any() else float(values[sample.action_mask].mean())


def within_groups(steps: Iterable[StoredStep]) -> float | None:
    """Correlation of reward and length, each taken relative to the mean of its group; None where nothing varies."""
    rewards: list[float] = []
    lengths: list[float] = []
    for members in groups(steps):
        r, n = [sample.outcome for _, sample in members], [float(length(sample)) for _, sample in members]
        rewards += [x - fmean(r) for x in r]
        lengths += [x - fmean(n) for x in n]
    spread = math.sqrt(sum(x * x for x in rewards) * sum(x * x for x in lengths))
    return sum(x * y for x, y in zip(rewards, lengths, strict=True)) / spread if spread > 0 else None


def most_common_edge(samples: Sequence[Named], characters: int) -> tuple[float, str, list[str]]:
    """The beginning or end that most answers share: its share of the answers, itself, and who has it."""
    best: tuple[float, str, list[str]] = (0.0, "", [])
    texts = [(name, answer(sample)) for name, sample in samples]
    for edge in (slice(None, characters), slice(-characters, None)):
        counts = Counter(text[edge] for _, text in texts if len(text) >= characters)
        for text, count in counts.most_common(1):
            if count / len(texts) > best[0]:
                best = (count / len(texts), text, [name for name, own in texts if own[edge] == text])
    return best
