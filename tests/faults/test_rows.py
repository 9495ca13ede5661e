"""Every fault has its tests, and these exist; how their ends become a table."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.faults.rows import FAULTS, Fault
from tests.faults.table import named, page, row_of, summary

TESTS = Path(__file__).parents[1]


@cache
def functions(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_fault_stands_once_and_has_tests_or_a_reason() -> None:
    assert [fault.id for fault in FAULTS] == [f"R{number:02}" for number in range(1, 47)]
    assert [fault.id for fault in FAULTS if not fault.tests and not fault.left] == []


@pytest.mark.parametrize("name", named(FAULTS))
def test_the_test_of_a_fault_exists(name: str) -> None:
    file, _, test = name.partition("::")
    assert test.partition("[")[0] in functions(TESTS / file)


@pytest.mark.slow
def test_pytest_finds_them_all() -> None:
    """With the cases in brackets, and none hidden by its file."""
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", *(f"tests/{name}" for name in named(FAULTS))],
        cwd=TESTS.parent, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-1000:]


TWO = Fault("R01", "a", "b", ("x.py::test_a", "x.py::test_b[1]"))


@pytest.mark.parametrize(
    ("ends", "survived"),
    [
        ({"x.py::test_a[2]": "passed", "x.py::test_b[1]": "passed"}, True),
        ({"x.py::test_a[2]": "passed", "x.py::test_a[3]": "failed", "x.py::test_b[1]": "passed"}, False),
        ({"x.py::test_a": "passed", "x.py::test_b[1]": "skipped"}, True),
        ({"x.py::test_a": "skipped", "x.py::test_b[1]": "skipped"}, None),
        ({"x.py::test_a": "passed"}, False),
        ({"x.py::test_a": "passed", "x.py::test_b[11]": "passed"}, False),
        ({}, False),
    ],
)
def test_a_fault_is_survived_when_all_its_tests_pass(ends: dict[str, str], survived: bool | None) -> None:
    assert row_of(TWO, ends, dict.fromkeys(ends, 1.0)).survived is survived


def test_the_page_counts_and_names() -> None:
    ends = {"x.py::test_a": "passed", "x.py::test_b[1]": "passed"}
    rows = [
        row_of(TWO, ends, dict.fromkeys(ends, 2.0)),
        row_of(Fault("R02", "c", "d", (), "there is no such machine"), {}, {}),
    ]
    assert summary(rows) == "2 faults, 1 survived, nothing lost; did not run: R02"
    assert summary([row_of(TWO, {}, {})]) == "1 faults, 0 survived, not survived: R01"
    text = page(rows, ["torch"])
    assert "| R01 | a | b | 2 | yes |" in text and "| R02 | c | d | 0 | did not run |" in text
    assert "- R02: there is no such machine." in text
