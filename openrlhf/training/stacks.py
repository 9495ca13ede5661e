"""Where every thread of a process stands, written at a signal: by C code, so also while Python does not get a turn."""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

WRITE = signal.SIGUSR2
TIME_S = 3.0  # what that takes

_file: TextIO | None = None  # faulthandler wants it to stay open


def prepare(path: Path) -> None:
    """This process writes its stacks to ``path`` at the signal. The last path counts."""
    global _file
    with suppress(OSError):  # a full disk, or a folder of another machine
        path.parent.mkdir(parents=True, exist_ok=True)
        before, _file = _file, path.open("w")
        faulthandler.register(WRITE, file=_file, all_threads=True)
        if before is not None:
            before.close()


def prepared() -> bool:
    return _file is not None


def ask(pids: Iterable[int]) -> None:
    """Let processes of this machine that have prepared write their stacks."""
    _send(pids, WRITE)


def resume(pids: Iterable[int]) -> None:
    """Those that were stopped go on: first they write their stacks."""
    _send(pids, signal.SIGCONT)


def _send(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def sweep(folder: Path) -> None:
    """Remove the files that nobody has written to. Every process of a run sweeps, and others may be faster."""
    with suppress(FileNotFoundError):  # the folder went while it was read
        for file in folder.glob("*.txt"):
            with suppress(OSError):
                if file.stat().st_size == 0:
                    file.unlink()
    with suppress(OSError):  # not empty, or not there
        folder.rmdir()
