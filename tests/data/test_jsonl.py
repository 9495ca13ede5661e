"""A file is there when it is complete."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from openrlhf.data.jsonl import whole_file


def test_rows_are_lines_of_json(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    with whole_file(path, "--out") as write:
        write([{"a": "ü\n"}, {"b": 1.5}])
        assert not path.exists()
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [{"a": "ü\n"}, {"b": 1.5}]
    assert [file.name for file in path.parent.iterdir()] == ["rows.jsonl"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("old\n")

    def broken() -> Iterator[dict[str, int]]:
        yield {"a": 1}
        raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"), whole_file(path, "--out") as write:
        write(broken())
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["", "file/rows.jsonl"])
def test_a_place_that_cannot_be_written_is_told_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ValueError, match=r"--out .* cannot be written \(.+\): name another"),
        whole_file(tmp_path / name, "--out"),
    ):
        pytest.fail("it must not begin")
