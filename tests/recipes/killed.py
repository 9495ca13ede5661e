"""Commands in processes of their own that die by SIGKILL at a chosen call. One process imports the libraries, and each
command is a fork of it."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.recipes.helpers import words

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["datasets", "openrlhf.cli.supervised", "openrlhf.backends.local_roles", __name__])
DEADLINE_S = 120
PAUSE_S = 1.2  # longer than signals count as one
TAKE_AWAY: Callable[[], None] | None = None  # what breaks the children's program before it runs, to test the tests


def run_apart(
    command: str, flags: dict[str, Any], at: str = "", call: int = 1, number: int = signal.SIGKILL, times: int = 1
) -> int:
    """Run ``openrlhf.cli.<command>`` and return its exit code.

    With ``at``, ``module:attribute.of.it``, the process sends itself the signal before the ``call``-th call, ``times``
    in all. What it prints goes into the file ``shown`` beside ``--save_path``.
    """
    shown = Path(flags["save_path"]).with_name("shown")
    process = CONTEXT.Process(target=_child, args=(command, words(flags), shown, TAKE_AWAY, at, call, number, times))
    process.start()
    process.join(DEADLINE_S)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"{command} did not end within {DEADLINE_S} s")
    if process.exitcode not in (0, -number, 128 + number):
        print(shown.read_text())
    return process.exitcode


def _child(
    command: str, argv: list[str], shown: Path, take_away: Callable[[], None] | None,
    at: str, call: int, number: int, times: int,
) -> None:  # fmt: skip
    with shown.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if take_away:
        take_away()
    if at:
        _signal_at(*at.split(":"), call, number, times)
    importlib.import_module(f"openrlhf.cli.{command}").main(argv)


def _signal_at(module: str, path: str, call: int, number: int, times: int) -> None:
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for attribute in owners:
        owner = vars(owner)[attribute]
    original: Callable[..., Any] = vars(owner)[name]
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            for before in range(times):
                time.sleep(PAUSE_S if before else 0)
                os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    setattr(owner, name, counted)
