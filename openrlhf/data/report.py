"""What became of the rows of a data set: how many were used, dropped and shortened, each kind with an example."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LISTED = 10  # row numbers of a kind that an error names


class UnusableRow(ValueError):
    """A row that is left out of the data; the message is the kind that ``DropReport`` counts."""


def whole_characters(text: str) -> str:
    """``text``. JSON can hold half a character, which no tokenizer takes: then raises UnusableRow."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UnusableRow("half a character (a lone surrogate)") from error
    return text


@dataclass
class Tally:
    example: str  # a short piece of the first row
    rows: list[int] = field(default_factory=list)  # the first ``LISTED`` row numbers, counted from 0
    count: int = 0


@dataclass
class DropReport:
    """Counts by kind. ``kept`` rows became data; ``dropped`` did not; ``shortened`` are kept rows that were cut."""

    kept: int = 0
    dropped: dict[str, Tally] = field(default_factory=dict)
    shortened: dict[str, Tally] = field(default_factory=dict)

    def drop(self, kind: str, number: int, example: str | Mapping[str, Any]) -> None:
        """Row ``number`` is left out; ``example`` is the row, or its text."""
        _count(self.dropped, kind, number, example)

    def shorten(self, kind: str, number: int, example: str | Mapping[str, Any]) -> None:
        _count(self.shortened, kind, number, example)

    def line(self) -> str:
        """One line: ``6 of 8 rows kept; dropped: empty response 2 (first row 3: {'q': '1+1=', 'a': ''})``."""
        parts = [f"{self.kept} of {self._total()} rows kept"]
        for name, tallies in (("dropped", self.dropped), ("shortened", self.shortened)):
            if tallies:
                kinds = [f"{kind} {t.count} (first row {t.rows[0]}: {t.example})" for kind, t in tallies.items()]
                parts.append(f"{name}: {', '.join(kinds)}")
        return "; ".join(parts)

    def finish(self, flag: str, strict: bool) -> None:
        """Raise ValueError when no row of ``flag`` was kept and, when ``strict``, when any was dropped or shortened."""
        if strict and (self.dropped or self.shortened):
            kinds = [
                f"{kind} in {t.count} (row{'s' * (t.count > 1)} {_listed(t)}; the first is {t.example})"
                for kind, t in (self.dropped | self.shortened).items()
            ]
            raise ValueError(
                f"--strict_data: not every row of {flag} can be used whole: {', '.join(kinds)}; mend or remove these "
                "rows, raise the length limit where they are too long, or leave out --strict_data"
            )
        if not self.kept:
            raise ValueError(f"no row of {flag} can be used: {self.line()}")

    def _total(self) -> int:
        return self.kept + sum(tally.count for tally in self.dropped.values())


class _Piece(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring, self.maxother, self.maxdict, self.maxlist, self.maxlevel = 50, 50, 8, 2, 3


def _count(tallies: dict[str, Tally], kind: str, number: int, example: str | Mapping[str, Any]) -> None:
    if kind not in tallies:
        tallies[kind] = Tally(_Piece().repr(example if isinstance(example, str) else dict(example)))
    tally = tallies[kind]
    tally.count += 1
    if len(tally.rows) < LISTED:
        tally.rows.append(number)


def _listed(tally: Tally) -> str:
    return ", ".join(map(str, tally.rows)) + (", …" if tally.count > len(tally.rows) else "")
