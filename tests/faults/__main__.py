"""``python -m tests.faults``: inject every fault and print the table; exit code 1 when a run does not survive one.

``--write`` keeps it in docs/faults.md. ``--report`` takes how the tests ended from a run of the suite that is over,
``make test PYTEST_ARGS=--junitxml=report.xml``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.faults.pages import PAGE, packages_here, section_of, with_section
from tests.faults.rows import FAULTS
from tests.faults.table import named, page, row_of, summary

TESTS = Path(__file__).parents[1]


class Outcomes:
    """How each test ended, and in how many seconds, by its name below tests/."""

    def __init__(self) -> None:
        self.ends: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.removeprefix("tests/")
        self.seconds[name] = self.seconds.get(name, 0.0) + report.duration
        if report.outcome != "passed" or name not in self.ends:
            self.ends[name] = report.outcome

    def read(self, report: Path) -> None:
        """What a JUnit report says, ``<testcase classname="tests.cluster.test_vllm" name="test_x[a]" time="1.5">``."""
        for case in ElementTree.parse(report).iter("testcase"):
            name = f"{case.attrib['classname'].removeprefix('tests.').replace('.', '/')}.py::{case.attrib['name']}"
            ends = {"failure": "failed", "error": "failed", "skipped": "skipped"}
            self.ends[name] = next((ends[part.tag] for part in case if part.tag in ends), "passed")
            self.seconds[name] = float(case.attrib["time"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write the table to docs/{PAGE.name} too")
    parser.add_argument(
        "--report", type=Path, nargs="+", default=[], metavar="XML",
        help="JUnit reports of the suite, instead of running tests; of a test in several the last one counts",
    )  # fmt: skip
    parser.add_argument("rows", nargs="*", help="R01 R24 …: these rows alone")
    args = parser.parse_args()
    chosen = [fault for fault in FAULTS if not args.rows or fault.id in args.rows]
    outcomes = Outcomes()
    if args.report:
        for report in args.report:
            outcomes.read(report)
    else:
        run(named(chosen), outcomes)
    rows = [row_of(fault, outcomes.ends, outcomes.seconds) for fault in chosen]
    for row in rows:
        print(row.line())
    print(summary(rows))
    if args.write:
        text = page(rows, packages_here())
        if PAGE.exists() and (soak := section_of(PAGE.read_text(encoding="utf-8"), "Soak")):
            text = with_section(text, "Soak", soak)
        PAGE.write_text(text, encoding="utf-8")
    if any(row.survived is False for row in rows):
        raise SystemExit(1)


def run(names: Iterable[str], outcomes: Outcomes) -> None:
    """Two files at once, as ``make test`` does."""
    files = [str(TESTS / name) for name in names]
    options = ["-q", "-n", "2", "--dist", "loadfile", "--rootdir", str(TESTS.parent)]
    if files and pytest.main([*options, *files], plugins=[outcomes]) > 1:
        raise SystemExit("pytest could not run the tests: see above")


if __name__ == "__main__":
    main()
