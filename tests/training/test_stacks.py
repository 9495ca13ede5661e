"""The files of stacks that every process of a run prepares, and sweeps at its end."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from openrlhf.training import stacks


def test_what_was_written_stays(tmp_path: Path) -> None:
    folder = tmp_path / "stacks"
    folder.mkdir()
    (folder / "rank0.txt").write_text("Thread 1")
    (folder / "rank1.txt").write_text("")
    stacks.sweep(folder)
    assert [file.name for file in folder.iterdir()] == ["rank0.txt"]


def test_another_process_may_sweep_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder goes between the look whether it is there and the look into it."""
    folder, glob = tmp_path / "stacks", Path.glob
    folder.mkdir()

    def late(path: Path, pattern: str) -> Iterator[Path]:
        shutil.rmtree(path)
        raise FileNotFoundError(str(path))
        yield from glob(path, pattern)

    monkeypatch.setattr(Path, "glob", late)
    stacks.sweep(folder)
    assert not folder.exists()
