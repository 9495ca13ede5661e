"""How long workers in other processes really worked, so that what lies around the work can be seen."""

from __future__ import annotations

import threading
from collections import defaultdict


class BusyClock:
    """Seconds of work by pool of devices; each pool's calls come after each other, different pools work at once.

    Calls report from their own threads. In one process nobody reports: there a phase is all work.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def add(self, pool: str, seconds: float) -> None:
        """A call kept ``pool`` busy: its slowest worker measured ``seconds`` between arguments and answer."""
        with self._lock:
            self._seconds[pool] += seconds

    def take(self) -> float | None:
        """The busiest pool's seconds since the last time, None when no pool reported."""
        with self._lock:
            seconds, self._seconds = self._seconds, defaultdict(float)
        return max(seconds.values(), default=None)
