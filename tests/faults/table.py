"""How the tests of each fault ended, and the page that they make."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.machine import describe
from benchmarks.table import markdown
from tests.faults.rows import Fault

INTRO = """\
Made by `make faults`, or from reports of the whole suite. Each row is a fault that tests inject into small runs of the
real commands, and what must happen then; `tests/faults/rows.py` names the tests. A row survives when every test of it
passes. *Bit for bit* means that the weights and every number of the log are those of the run without the fault."""


@dataclass(frozen=True)
class Row:
    """``survived`` is None where no test ran; ``why`` then says why."""

    fault: Fault
    survived: bool | None
    tests: int
    seconds: float
    why: str

    def verdict(self) -> str:
        return {True: "yes", False: "**NO**", None: "did not run"}[self.survived]

    def line(self) -> str:
        return f"{self.fault.id}  {self.verdict():11}  {self.tests:3} tests {self.seconds:6.1f} s  {self.fault.fault}"

    def cells(self) -> list[str]:
        return [self.fault.id, self.fault.fault, self.fault.must, str(self.tests), self.verdict()]


def named(faults: Iterable[Fault]) -> list[str]:
    """The tests of all of them, each once."""
    return list(dict.fromkeys(name for fault in faults for name in fault.tests))


def row_of(fault: Fault, ends: Mapping[str, str], seconds: Mapping[str, float]) -> Row:
    """``ends`` and ``seconds`` are of the tests that ran, cases of one function apart."""
    cases = [case for case in ends if any(belongs(case, name) for name in fault.tests)]
    ran = [case for case in cases if ends[case] != "skipped"]
    why = fault.left or ("" if ran else "its tests are skipped on this machine")
    survived = all(ends[case] == "passed" for case in ran) if ran else None
    if any(not any(belongs(case, name) for case in cases) for name in fault.tests):
        survived = False  # a test that was never collected proves nothing
    return Row(fault, survived, len(ran), sum(seconds[case] for case in ran), why)


def belongs(case: str, name: str) -> bool:
    """Whether the case of a test is what ``name`` names."""
    return case == name or case.startswith(name + "[")


def summary(rows: Sequence[Row]) -> str:
    survived = sum(row.survived is True for row in rows)
    failed = [row.fault.id for row in rows if row.survived is False]
    missing = [row.fault.id for row in rows if row.survived is None]
    loss = f"not survived: {', '.join(failed)}" if failed else "nothing lost"
    absent = f"; did not run: {', '.join(missing)}" if missing else ""
    return f"{len(rows)} faults, {survived} survived, {loss}{absent}"


def page(rows: Sequence[Row], packages: Sequence[str]) -> str:
    left = [f"- {row.fault.id}: {row.why}." for row in rows if row.why]
    return (
        "\n\n".join(
            [
                "# Faults",
                f"{describe(packages)}: **{summary(rows)}**",
                INTRO,
                markdown(("", "fault", "what must happen", "tests", "survived"), [row.cells() for row in rows]),
                *(["## What is left", "\n".join(left)] if left else []),
            ]
        )
        + "\n"
    )
