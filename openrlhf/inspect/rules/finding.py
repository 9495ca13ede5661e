"""What a rule says of a run, and what rules share: bands, samples, weights.

Thresholds are those of ``training/bands.py`` where there is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from openrlhf.inspect.evidence import Evidence, Named, ends
from openrlhf.training.bands import BANDS

SHOWN = 5  # samples that a finding names


@dataclass(frozen=True)
class Finding:
    """``weight``: how bad, from 0 to 1. ``thin``: why the evidence is thin, or nothing."""

    what: str
    weight: float
    numbers: dict[str, float]
    remedy: str
    samples: Sequence[str] = ()
    thin: str = ""
    rule: str = field(default="", compare=False)


@dataclass(frozen=True)
class Unknown:
    """The rule cannot say anything about this run."""

    why: str


Answer = Finding | Unknown | None
Rule = Callable[[Evidence], Answer]


@dataclass(frozen=True)
class Upper:
    """The upper bounds of a band."""

    healthy: float
    red: float


def upper(metric: str) -> Upper:
    """Raises ValueError for a metric whose band has none."""
    healthy, red = BANDS[metric].healthy[1], BANDS[metric].red[1]
    if healthy is None or red is None:
        raise ValueError(f"the band of {metric} has no upper bound")
    return Upper(healthy, red)


def outgrown(values: Sequence[float], band: Upper, times: float) -> tuple[float, float] | None:
    """The first and the last fifth, where the last is a red flag, or not healthy and ``times`` the first."""
    first, last = ends(values)
    worse = last > band.red or (last > band.healthy and last >= times * first)
    return (first, last) if worse else None


def beyond(value: float, good: float, bad: float) -> float:
    """Where ``value`` lies between good (0) and bad (1), on a scale of factors."""
    if not math.isfinite(value):
        return 1.0
    return min(1.0, max(0.0, math.log(max(value, 1e-12) / good) / math.log(bad / good)))


def shown(samples: Sequence[Named]) -> list[str]:
    return [name for name, _ in samples[:SHOWN]]
