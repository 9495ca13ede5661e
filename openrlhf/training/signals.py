"""SIGTERM and SIGINT as a request to stop after the step; a second one ends the process at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Launchers pass a signal on that the terminal has sent to every process already: within this time it is the same one.
SAME_SIGNAL_S = 1.0


class StopRequest:
    """``name`` of the signal that asked, or None."""

    name: str | None = None
    since = 0.0

    def ask(self, number: int, frame: FrameType | None) -> None:
        if self.name is None:
            self.name, self.since = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - self.since > SAME_SIGNAL_S:
            os._exit(128 + number)


@contextmanager
def stop_requests(catch: bool) -> Iterator[StopRequest]:
    """Inside, the two signals make the request; without ``catch`` they end the process as ever."""
    request = StopRequest()
    if not catch:
        yield request
        return
    before = {number: signal.signal(number, request.ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
