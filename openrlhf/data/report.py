"""What became of the rows of a data set: how many were used, dropped and shortened, each with an example."""

from __future__ import annotations

from dataclasses import dataclass, field


class UnusableRow(Exception):
    """Raised for a row that is left out of the data; the message is the kind that ``DropReport`` counts."""


@dataclass
class Tally:
    count: int
    first: int  # row number, counted from 0


@dataclass
class DropReport:
    """Counts by kind. ``kept`` rows became data; ``dropped`` did not; ``shortened`` are kept rows that were cut."""

    kept: int = 0
    dropped: dict[str, Tally] = field(default_factory=dict)
    shortened: dict[str, Tally] = field(default_factory=dict)

    def drop(self, kind: str, row: int) -> None:
        _count(self.dropped, kind, row)

    def shorten(self, kind: str, row: int) -> None:
        _count(self.shortened, kind, row)

    def line(self) -> str:
        """One line: ``6 of 8 rows kept; dropped: empty response 2 (first row 3)``."""
        total = self.kept + sum(tally.count for tally in self.dropped.values())
        parts = [f"{self.kept} of {total} rows kept"]
        if self.dropped:
            parts.append(f"dropped: {_listed(self.dropped)}")
        if self.shortened:
            parts.append(f"shortened: {_listed(self.shortened)}")
        return "; ".join(parts)


def _count(tallies: dict[str, Tally], kind: str, row: int) -> None:
    tallies.setdefault(kind, Tally(0, row)).count += 1


def _listed(tallies: dict[str, Tally]) -> str:
    return ", ".join(f"{kind} {tally.count} (first row {tally.first})" for kind, tally in tallies.items())
