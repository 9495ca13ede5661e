"""A clock that is set while a run works, by hand or by a time server."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

import openrlhf
from openrlhf.cli import train_sft
from tests.recipes.helpers import run
from tests.recipes.test_resume import SAVES, dies, model, same, sft, whole  # noqa: F401  (fixtures)


def test_a_run_under_a_clock_that_jumps_goes_on_exactly(
    sft: dict[str, Any],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Back and forth by days at every look; and the second process begins in the year before."""
    expected = whole("train_sft", sft)
    true, looks = time.time, 0

    def jumping() -> float:
        nonlocal looks
        looks += 1
        return true() + (-1) ** looks * 86400.0 * looks

    with monkeypatch.context() as patched:
        patched.setattr(time, "time", jumping)
        dies(monkeypatch, sft | SAVES, 5)
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: true() - 365 * 86400.0)
        run(train_sft.main, sft | SAVES | {"load_checkpoint": True})
    same(sft["save_path"], expected)


def test_no_wait_is_measured_by_the_clock_on_the_wall() -> None:
    files = list(Path(openrlhf.__file__).parent.rglob("*.py"))
    assert len(files) > 100
    assert [str(file) for file in files if re.search(r"\btime\.time\(|datetime\.now\(", file.read_text())] == []
