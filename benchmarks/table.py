"""Ratios against goals, as a Markdown table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.rounds import Usage

MB = 1e6


@dataclass(frozen=True)
class Row:
    """``ratios`` are ours ÷ theirs, round by round; one entry for memory, which has one peak."""

    what: str
    ours: str
    theirs: str
    ratios: Sequence[float]
    goal: float | None

    def cells(self) -> list[str]:
        goal = "–" if self.goal is None else f"≤ {self.goal:.2f}"
        return [self.what, self.ours, self.theirs, spread(self.ratios), goal, verdict(self.ratios, self.goal)]


def cpu_row(what: str, usages: dict[str, Usage], theirs: str, goal: float | None, ours: str = "ours") -> Row:
    """CPU time a step, pair by pair."""
    a, b = usages[ours], usages[theirs]
    ratios = [x / y for x, y in zip(a.cpu, b.cpu, strict=True)]
    return Row(f"{what}: CPU, {ours} ÷ {theirs}", milliseconds(a.cpu), milliseconds(b.cpu), ratios, goal)


def memory_row(what: str, usages: dict[str, Usage], theirs: str, goal: float | None, ours: str = "ours") -> Row:
    """Peak memory of the whole process, imports and model included."""
    a, b = usages[ours].peak, usages[theirs].peak
    return Row(f"{what}: peak memory, {ours} ÷ {theirs}", f"{a / MB:.0f} MB", f"{b / MB:.0f} MB", [a / b], goal)


def milliseconds(seconds: Sequence[float]) -> str:
    return f"{1000 * statistics.median(seconds):.0f} ms"


def spread(ratios: Sequence[float]) -> str:
    middle = f"{statistics.median(ratios):.2f}"
    return middle if len(ratios) == 1 else f"{middle} ({min(ratios):.2f}–{max(ratios):.2f})"


def verdict(ratios: Sequence[float], goal: float | None) -> str:
    """A goal is met, or missed, only when every round says so."""
    if goal is None:
        return "–"
    if max(ratios) <= goal:
        return "yes"
    return "no" if min(ratios) > goal else "not shown: rounds on both sides"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
