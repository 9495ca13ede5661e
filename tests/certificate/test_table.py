"""When a row counts as met, and how the page looks."""

from __future__ import annotations

import pytest

from certificate.table import Row, page


@pytest.mark.parametrize(
    ("gradient", "numbers", "tolerance", "met"),
    [
        (1e-7, 1e-7, 1e-6, True),
        (None, 1e-7, 1e-6, True),
        (1e-5, 0.0, 1e-6, False),
        (0.0, 1e-5, 1e-6, False),
        (float("inf"), 0.0, 1e-6, False),
        (float("nan"), 0.0, 1e-6, False),
        (0.0, float("nan"), 1e-6, False),
        (0.0, 0.0, 0.0, True),
        (1e-300, 0.0, 0.0, False),
    ],
)
def test_a_row_is_met_within_its_tolerance(gradient: float | None, numbers: float, tolerance: float, met: bool) -> None:
    assert Row("I1", "statement", "method", gradient, numbers, tolerance).met == met


def test_a_page_has_a_table_for_each_statement() -> None:
    rows = [Row("I11", "saved", "a", None, 2e-5, 1e-5), Row("I2", "ranks", "b", 1.5e-7, 0.0, 0.0)]
    text = page(rows, ["Something is missing."], ["torch"])
    assert "**0 of 2 met**" in text and "\n\nSomething is missing.\n\n" in text
    assert text[text.index("## ") :] == (
        "## I2: ranks\n\nNo bit may differ.\n\n| method | gradient | numbers | met |\n| --- | --- | --- | --- |\n"
        "| b | 1.5e-07 | 0 | **NO** |\n\n"
        "## I11: saved\n\nTolerance 1e-05.\n\n| method | gradient | numbers | met |\n| --- | --- | --- | --- |\n"
        "| a | – | 2.0e-05 | **NO** |\n"
    )
