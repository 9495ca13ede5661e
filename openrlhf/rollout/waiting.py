"""What a run waits for outside its own processes: said each minute, and by those whose time is over meanwhile."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SAY_S = 60.0

_waits: dict[threading.Event, tuple[str, float]] = {}  # by what ends it: what for, and since when


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Inside, ``what`` is waited for. A line on the screen says so after a minute, and again and again."""
    ended, since = threading.Event(), time.monotonic()
    _waits[ended] = what, since
    threading.Thread(target=_say, args=(ended, what, since), daemon=True, name="waiting").start()
    try:
        yield
    finally:
        del _waits[ended]
        ended.set()


def waited_for() -> str:
    """What is waited for now, and for how long; empty when nothing is."""
    return ", ".join(f"{what} for {time.monotonic() - since:.0f} s" for what, since in list(_waits.values()))


def _say(ended: threading.Event, what: str, since: float) -> None:
    while not ended.wait(timeout=SAY_S):
        print(f"waiting for {what} for {time.monotonic() - since:.0f} s", file=sys.stderr, flush=True)
