"""A run watched while it works: what it holds must not grow with its steps."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.faults.pages import section_of, with_section
from tests.faults.soak import LOCAL, Reading, Soak, outlived, run, section


@pytest.mark.slow
def test_fifty_steps_in_one_process_leave_nothing_behind(tmp_path: Path) -> None:
    """A twentieth of memory is what the allocator may take its time to settle; a leak of a batch a step is more."""
    soak = run(tmp_path, 50, LOCAL, warm=15)
    assert soak.first.memory > 1e8 and soak.first.files > 0 and soak.first.threads > 0 and soak.last.processes == 1
    assert soak.faults(most_growth=0.05) == []


SAME = Reading(60, 1000.0, 10, 20, 3)


@pytest.mark.parametrize(
    ("last", "left", "code", "faults"),
    [
        (Reading(400, 1009.0, 10, 20, 3), (), 0, []),
        (Reading(400, 900.0, 9, 19, 2), (), 0, []),
        (Reading(400, 1011.0, 10, 20, 3), (), 0, ["memory grew by 1.1%"]),
        (Reading(400, 1000.0, 11, 20, 3), (), 0, ["files went from 10 to 11"]),
        (Reading(400, 1000.0, 10, 22, 4), (), 0, ["threads went from 20 to 22", "processes went from 3 to 4"]),
        (SAME, ("raylet",), 0, ["raylet outlived the run"]),
        (SAME, (), 1, ["the run ended with 1"]),
    ],
)
def test_what_counts_as_growth(last: Reading, left: tuple[str, ...], code: int, faults: list[str]) -> None:
    assert Soak(code, 400, 1.0, SAME, last, left).faults() == faults


def test_a_process_that_lives_on_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.faults.soak.ENDING_S", 0.0)
    assert outlived({psutil.Process()}) == [psutil.Process().name()]


def test_the_page_keeps_what_other_commands_wrote() -> None:
    page = "# Faults\n\nAll.\n"
    text = with_section(page, "Soak", section(Soak(0, 400, 9.0, SAME, SAME, ())))
    assert section_of(text, "Soak").splitlines()[-1] == "| 60 | 0.0 MiB | 10 | 20 | 3 |"
    assert with_section(text, "Soak", "new") == "# Faults\n\nAll.\n\n## Soak\n\nnew\n"
    assert section_of(page, "Soak") == ""
