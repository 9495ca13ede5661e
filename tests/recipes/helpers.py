"""Commands run in this process on files of the test."""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from openrlhf.algorithms.registry import load_from_file

# What a clock decides.
TIMES = ("step_seconds", "tokens_per_second")


def words(flags: dict[str, Any]) -> list[str]:
    """``{"local": True, "seed": 1}`` → ``["--local", "--seed", "1"]``; what is None is left out."""
    line: list[str] = []
    for name, value in flags.items():
        if value is None:
            continue
        line += (
            [f"--{name}"]
            if value is True
            else [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
        )
    return line


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of ``metrics.jsonl`` without what a clock decides."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMES and not k.startswith(("time/", "busy/"))} for row in rows]


def column(folder: Path, name: str) -> list[float]:
    return [row[name] for row in metrics(folder) if name in row]


def run(main: Callable[[list[str]], None], flags: dict[str, Any]) -> Path:
    """Run a command; its ``--save_path``."""
    main(words(flags))
    return Path(flags["save_path"])


def run_in_turn(commands: Iterable[list[str]]) -> None:
    """Run ``python -m MODULE …`` and ``python FILE …`` in this process."""
    for line in commands:
        if line[1] == "-m":
            importlib.import_module(line[2]).main(line[3:])
        else:
            load_from_file(f"{line[1]}:main", "test")(*line[2:])


def launched(command: list[str], **environment: str) -> None:
    """Run a program, as a user would from a shell; what it printed is shown when it fails."""
    outer = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    done = subprocess.run(
        command,
        env={**outer, "DS_ACCELERATOR": "cpu", **environment},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])
