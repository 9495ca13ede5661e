"""Checkpoints as folders on a disk: written whole or not at all, verified before use, pruned. Knows nothing of models.

    ckpt_path/
        latest                the name of the newest checkpoint, for people; loading looks at the folders themselves
        global_step6/         parts, and last of all manifest.json: the size and SHA-256 of every part
        global_step6_hf/      a Hugging Face folder of the same step, with --save_hf_ckpt
        global_step9.tmp/     being written; swept away by the next run

A checkpoint is written under its temporary name, each file flushed to the disk, then renamed: a kill at any moment
leaves it complete or absent. Loading executes no code: parts are read with ``weights_only``, the rest is JSON.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from openrlhf import __version__

MANIFEST, POINTER = "manifest.json", "latest"
TEMPORARY, MARKS = ".tmp", ".marks"
REPLACED = ".old"  # what gives way to a folder of the same name
FORMAT = 1
NAME = re.compile(r"global_step(\d+)(_hf|_hf_critic)?")
GIGABYTE = 1024**3


class Damaged(Exception):
    """The checkpoint is not what was written; the message says where."""


@dataclass(frozen=True)
class Mark:
    """What a file must be."""

    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds. ``serial`` grows with each one written into a folder, whatever its step or the clock."""

    step: int
    serial: int
    progress: dict[str, Any]
    made_by: dict[str, Any]  # what decides the numbers of the run; another run must not go on from here
    files: dict[str, Mark]
    version: str = __version__  # of the package, for people


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    """``torch.save`` of tensors, numbers, text, lists and dictionaries, flushed to the disk, with its mark beside it.

    Raises OSError when the disk does not take it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        sink = _HashingSink(file)
        try:
            torch.save(content, sink)  # type: ignore[arg-type]  # it writes, and needs no more
        except RuntimeError as error:  # PyTorch's writer puts one of its own in front of what the disk said
            if sink.failure is None:
                raise
            raise sink.failure from error
        _flush(file)
    mark = Mark(sink.size, sink.digest.hexdigest())
    _write_json(path.with_name(path.name + MARKS), asdict(mark))


def read_tensors(path: Path) -> dict[str, Any]:
    """What ``write_tensors`` wrote. Tensors are mapped from the file, and read when they are used.

    Raises Damaged when it holds anything else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        raise Damaged(f"{path} holds more than tensors, which could run code") from error
    except (RuntimeError, OSError, EOFError) as error:
        raise Damaged(f"{path} is no file of tensors") from error


def begin(root: Path, name: str) -> Path:
    """An empty temporary folder for ``name``."""
    folder = root / (name + TEMPORARY)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def commit(root: Path, step: int, progress: Mapping[str, Any], made_by: Mapping[str, Any], ranks: int) -> None:
    """Make the folder of ``begin`` a checkpoint. Raises OSError, also when fewer than ``ranks`` files are there."""
    folder = root / (step_name(step) + TEMPORARY)
    marks = {}
    for path in sorted(folder.rglob("*" + MARKS)):
        part = path.with_name(path.name.removesuffix(MARKS))
        marks[str(part.relative_to(folder))] = Mark(**json.loads(path.read_text()))
        path.unlink()
    if len(marks) < ranks:
        raise OSError(f"{len(marks)} of {ranks} ranks wrote their part into {root}: it must be one folder for all")
    serial = 1 + max((read_serial(path) for path in _checkpoints(root)), default=0)
    manifest = Manifest(step, serial, dict(progress), dict(made_by), marks)
    content = {**asdict(manifest), "format": FORMAT}
    _write_json(folder / MANIFEST, {"sha256": _checksum(content), "content": content})
    publish(root, step_name(step))
    temporary = root / (POINTER + TEMPORARY)
    with temporary.open("w") as file:
        file.write(step_name(step) + "\n")
        _flush(file)
    temporary.replace(root / POINTER)
    _flush_folder(root)


def publish(root: Path, name: str) -> None:
    """Give the temporary folder of ``name`` its name; one that had it (of another run, or damaged) goes away."""
    folder, final = root / (name + TEMPORARY), root / name
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    for path in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
        _flush_folder(path)
    if final.exists():
        old = root / (name + REPLACED + TEMPORARY)
        final.rename(old)
        folder.rename(final)
        shutil.rmtree(old)
    else:
        folder.rename(final)
    _flush_folder(root)


def sweep(root: Path) -> None:
    """Remove what a run that died left half written. What gave way to a folder that never came is there again."""
    for path in root.glob("*" + REPLACED + TEMPORARY):
        if not (final := root / path.name.removesuffix(REPLACED + TEMPORARY)).exists():
            path.rename(final)
    for path in root.glob("*" + TEMPORARY):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def read_manifest(folder: Path) -> Manifest:
    """Raises Damaged when it is missing or not what was written."""
    try:
        stored = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        content = stored["content"]
        if stored["sha256"] != _checksum(content):
            raise Damaged(f"{MANIFEST} is not what was written")
        if content.pop("format") != FORMAT:
            raise Damaged(f"{MANIFEST} has another format than this version reads")
        files = {name: Mark(**mark) for name, mark in content.pop("files").items()}
        return Manifest(files=files, **content)
    except OSError as error:
        raise Damaged(f"{MANIFEST} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{MANIFEST} is not what was written") from error


def verify(folder: Path) -> Manifest:
    """The manifest, after every file was compared with it. Raises Damaged naming the file."""
    manifest = read_manifest(folder)
    with ThreadPoolExecutor(max_workers=8) as pool:
        for failure in pool.map(lambda item: _difference(folder / item[0], item[1]), manifest.files.items()):
            if failure:
                raise Damaged(failure)
    return manifest


def candidates(root: Path) -> list[Path]:
    """The checkpoints that a run may go on from, the newest first, and before it those that cannot say their age."""
    return sorted(_checkpoints(root), key=lambda path: read_serial(path) or math.inf, reverse=True)


def read_serial(folder: Path) -> int:
    """0 for what cannot be read."""
    try:
        return read_manifest(folder).serial
    except Damaged:
        return 0


def prune(root: Path, last: int, max_number: int, max_bytes: int) -> None:
    """Delete the oldest steps until at most ``max_number`` of at most ``max_bytes`` are left.

    A step is its checkpoint and its Hugging Face folders. ``last``, the step that was just written, always stays, and
    so does the newest checkpoint, when ``last`` has Hugging Face folders alone.
    """
    newest = max(_checkpoints(root), key=read_serial, default=None)
    stay = {last} if newest is None else {last, step_of(newest)}
    steps: dict[int, list[Path]] = {}
    for path in _folders(root):
        steps.setdefault(step_of(path), []).append(path)

    def age(step: int) -> tuple[bool, int, int]:
        return step in stay, max(map(read_serial, steps[step])), max(p.stat().st_mtime_ns for p in steps[step])

    oldest_first = sorted(steps, key=age)
    sizes = {step: sum(_size(path) for path in paths) for step, paths in steps.items()}
    while len(oldest_first) > len(stay) and (
        len(oldest_first) > max_number or sum(sizes[step] for step in oldest_first) > max_bytes
    ):
        for path in steps[oldest_first.pop(0)]:
            gone = path.rename(path.with_name(path.name + TEMPORARY))
            shutil.rmtree(gone)


def step_name(step: int) -> str:
    return f"global_step{step}"


def step_of(folder: Path) -> int:
    match = NAME.fullmatch(folder.name)
    assert match is not None
    return int(match[1])


def _folders(root: Path) -> Iterator[Path]:
    """Checkpoints and Hugging Face folders."""
    if root.is_dir():
        yield from (p for p in sorted(root.iterdir()) if p.is_dir() and NAME.fullmatch(p.name))


def _checkpoints(root: Path) -> Iterator[Path]:
    return (path for path in _folders(root) if path.name == step_name(step_of(path)))


class _HashingSink:
    """A file that hashes what passes. PyTorch writes its archives from the first byte to the last."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.size = 0
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written = self.file.write(data)
        except OSError as error:
            self.failure = error
            raise
        self.digest.update(data)
        self.size += written
        return written

    def flush(self) -> None:
        self.file.flush()


def _difference(path: Path, mark: Mark) -> str | None:
    try:
        size = path.stat().st_size
        if size != mark.size:
            return f"{path.name} has {size} bytes of {mark.size}"
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != mark.sha256:
                return f"the bytes of {path.name} are not those that were written"
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"
    return None


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        _flush(file)


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Make renames inside the folder last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
