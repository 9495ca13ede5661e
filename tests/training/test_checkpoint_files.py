"""A checkpoint is complete or absent, is what was written or is not loaded, and is never the last one to be deleted."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from openrlhf.training import checkpoint_files as files

CONTENT = {
    "weight": torch.arange(1000.0),
    "numbers": [1, 2.5, "three", (4, None)],
    "deep": {"of": {"it": torch.ones(3)}},
}


def write(root: Path, step: int, ranks: int = 1, size: int = 100) -> Path:
    folder = files.begin(root, files.step_name(step))
    for rank in range(ranks):
        files.write_tensors(folder / f"rank{rank}.pt", {"tensor": torch.full((size,), float(step))})
    files.commit(root, step, {"step": step}, {"--seed": 1}, ranks)
    return root / files.step_name(step)


def steps(root: Path) -> list[int]:
    return sorted(files.step_of(path) for path in root.iterdir() if path.is_dir())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    files.write_tensors(tmp_path / "part.pt", CONTENT)
    got = files.read_tensors(tmp_path / "part.pt")
    assert torch.equal(got["weight"], CONTENT["weight"]) and torch.equal(got["deep"]["of"]["it"], torch.ones(3))
    assert got["numbers"] == CONTENT["numbers"]


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


def test_loading_executes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Payload()}, tmp_path / "part.pt")
    with pytest.raises(files.Damaged, match="part.pt holds more than tensors, which could run code"):
        files.read_tensors(tmp_path / "part.pt")
    assert not (tmp_path / "executed").exists()


def test_a_committed_checkpoint_verifies_and_says_what_it_holds(tmp_path: Path) -> None:
    manifest = files.verify(write(tmp_path, 3, ranks=2))
    assert (manifest.step, manifest.serial, manifest.progress) == (3, 1, {"step": 3})
    assert set(manifest.files) == {"rank0.pt", "rank1.pt"}
    assert (tmp_path / "latest").read_text() == "global_step3\n"
    assert {path.name for path in (tmp_path / "global_step3").iterdir()} == {"rank0.pt", "rank1.pt", "manifest.json"}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda p: (p / "rank0.pt").write_bytes(b""), "rank0.pt has 0 bytes of "),
        (lambda p: (p / "rank0.pt").unlink(), "rank0.pt cannot be read"),
        (lambda p: flip(p / "rank0.pt"), "the bytes of rank0.pt are not those"),
        (lambda p: flip(p / "manifest.json"), "manifest.json is not what was written"),
        (lambda p: (p / "manifest.json").write_text("[]"), "manifest.json is not what was written"),
        (lambda p: (p / "manifest.json").unlink(), "manifest.json cannot be read"),
    ],
)
def test_damage_is_named(tmp_path: Path, spoil: Any, says: str) -> None:
    folder = write(tmp_path, 3)
    spoil(folder)
    with pytest.raises(files.Damaged, match=says):
        files.verify(folder)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    place = data.index(b'"seed') + 2 if path.suffix == ".json" and b'"seed' in data else len(data) // 2
    data[place] ^= 1
    path.write_bytes(data)


def test_a_number_changed_by_hand_is_damage(tmp_path: Path) -> None:
    path = write(tmp_path, 3) / "manifest.json"
    path.write_text(path.read_text().replace('"step": 3', '"step": 2'))
    with pytest.raises(files.Damaged):
        files.read_manifest(path.parent)


def test_a_missing_rank_is_not_committed(tmp_path: Path) -> None:
    folder = files.begin(tmp_path, "global_step1")
    files.write_tensors(folder / "rank0.pt", {})
    with pytest.raises(OSError, match="1 of 2 ranks wrote their part"):
        files.commit(tmp_path, 1, {}, {}, ranks=2)
    assert not (tmp_path / "global_step1").exists()


def test_the_newest_is_the_last_one_written_whatever_its_step_or_the_clock(tmp_path: Path) -> None:
    for step, time in ((30, 3e9), (2, 2e9), (10, 1e9)):  # an older run had got to step 30; the clock runs backwards
        os.utime(write(tmp_path, step), (time, time))
    assert [path.name for path in files.candidates(tmp_path)] == ["global_step10", "global_step2", "global_step30"]
    (tmp_path / "global_step2" / "manifest.json").write_text("{")
    assert files.candidates(tmp_path)[0].name == "global_step2"  # it may be the newest: to be told


def test_a_step_written_again_replaces_the_old_one(tmp_path: Path) -> None:
    write(tmp_path, 3)
    write(tmp_path, 3, size=7)
    assert files.verify(tmp_path / "global_step3").serial == 2
    assert {path.name for path in tmp_path.iterdir()} == {"global_step3", "latest"}


def test_what_a_dead_run_left_is_swept_away(tmp_path: Path) -> None:
    write(tmp_path, 1)
    files.write_tensors(files.begin(tmp_path, "global_step2") / "rank0.pt", {})
    (tmp_path / "latest.tmp").write_text("global")
    files.sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"global_step1", "latest"}


def test_a_checkpoint_that_never_got_its_successor_is_there_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the two renames that replace a folder."""
    write(tmp_path, 3)

    class Died(BaseException):
        pass

    rename, calls = Path.rename, 0

    def fatal(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Died
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", fatal)
        with pytest.raises(Died):
            write(tmp_path, 3, size=7)
    assert not (tmp_path / "global_step3").exists()
    files.sweep(tmp_path)
    assert files.verify(tmp_path / "global_step3").serial == 1
    assert {path.name for path in tmp_path.iterdir()} == {"global_step3", "latest"}


@pytest.mark.parametrize(
    ("number", "size", "left"),
    [(3, 10**9, [2, 3, 4]), (1, 10**9, [4]), (9, 10**9, [1, 2, 3, 4]), (9, 9000, [3, 4]), (9, 1, [4])],
)
def test_the_oldest_go_first_and_the_last_one_stays(tmp_path: Path, number: int, size: int, left: list[int]) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step, size=900)
    whole = sum(path.stat().st_size for path in (tmp_path / "global_step1").iterdir())
    assert 4000 < whole < 4500 + 1500  # 900 float32 numbers, an archive around them, a manifest
    files.prune(tmp_path, 4, number, size if size != 9000 else 2 * whole + 100)
    assert steps(tmp_path) == left


def test_a_run_that_writes_hugging_face_folders_alone_leaves_the_newest_checkpoint(tmp_path: Path) -> None:
    for step in (1, 2):
        write(tmp_path, step)
    for step in (3, 4, 5):
        (tmp_path / f"global_step{step}_hf").mkdir()
        files.prune(tmp_path, step, 2, 10**9)
    assert steps(tmp_path) == [2, 5]
    files.verify(tmp_path / "global_step2")


def test_folders_of_a_step_go_with_it(tmp_path: Path) -> None:
    for step in (1, 2):
        write(tmp_path, step)
        for ending in ("_hf", "_hf_critic"):
            (tmp_path / f"global_step{step}{ending}").mkdir()
    (tmp_path / "notes").mkdir()
    files.prune(tmp_path, 2, 1, 10**9)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("global_step2", "global_step2_hf", "global_step2_hf_critic", "notes", "latest")
    }


def test_a_disk_without_room_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of an archive, where PyTorch raises an error of its own."""

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, data: bytes) -> int:
            if len(data) > 1000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data)

        def flush(self) -> None:
            self.file.flush()

        def fileno(self) -> int:
            return self.file.fileno()

    sink = files._HashingSink
    monkeypatch.setattr(files, "_HashingSink", lambda file: sink(Full(file)))
    with pytest.raises(OSError, match="No space left on device"):
        files.write_tensors(tmp_path / "part.pt", CONTENT)


def test_the_manifest_is_json_for_people(tmp_path: Path) -> None:
    content = json.loads((write(tmp_path, 3) / "manifest.json").read_text())["content"]
    assert content["made_by"] == {"--seed": 1} and content["files"]["rank0.pt"]["size"] > 400
