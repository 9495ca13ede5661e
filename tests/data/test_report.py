from __future__ import annotations

import re

import pytest

from openrlhf.data.report import DropReport


def test_each_kind_has_its_count_and_a_piece_of_its_first_row():
    report = DropReport(kept=5)
    report.drop("empty answer", 3, {"q": "x" * 200, "a": ""})
    report.drop("empty answer", 6, {"q": "y", "a": ""})
    report.shorten("too long", 4, "the beginning " + "of the text " * 40 + "and its end")
    line = report.line()
    assert line.startswith("5 of 7 rows kept; dropped: empty answer 2 (first row 3: {'a': '', 'q': 'xxx")
    assert re.search(r"; shortened: too long 1 \(first row 4: 'the beginning of .*\.\.\..* and its end'\)$", line)
    assert len(line) < 250


def test_a_piece_of_a_row_cannot_steer_the_terminal():
    report = DropReport()
    report.drop("empty answer", 0, {"q": "\x1b[2J\n", "a": ""})
    assert "\x1b" not in report.line() and "\n" not in report.line()


def test_nothing_left_is_an_error_strict_or_not():
    report = DropReport()
    report.drop("empty answer", 0, {"a": ""})
    with pytest.raises(
        ValueError, match="^no row of --dataset can be used: 0 of 1 rows kept; dropped: empty answer 1 "
    ):
        report.finish("--dataset", strict=False)


def test_strict_names_every_kind_its_rows_and_the_way_out():
    report = DropReport(kept=90)
    for row in range(20, 32):
        report.drop("empty answer", row, {"a": ""})
    report.shorten("text over --max_len", 2, "long")
    with pytest.raises(ValueError, match="^--strict_data: ") as error:
        report.finish("--eval_dataset", strict=True)
    assert str(error.value) == (
        "--strict_data: not every row of --eval_dataset can be used whole: empty answer in 12 (rows 20, 21, 22, 23, "
        "24, 25, 26, 27, 28, 29, …; the first is {'a': ''}), text over --max_len in 1 (row 2; the first is 'long'); "
        "mend or remove these rows, raise the length limit where they are too long, or leave out --strict_data"
    )


def test_strict_is_silent_when_all_is_well():
    report = DropReport(kept=2)
    report.finish("--dataset", strict=True)
    assert report.line() == "2 of 2 rows kept"
