"""Between the harness and a program in its own process: the gate opens for one step at a time.

A program calls ``opens`` before every step and ``record`` after it. At the end of a round ``opens`` reports and blocks,
at no CPU cost, until the harness asks for the next round; so rounds of several programs alternate on one machine, also
for trainers that own their loop.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TextIO


def peak_memory() -> int:
    """Largest resident memory of this process so far, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status does not tell VmHWM")


class Gate:
    """``total`` is the number of steps of the whole run, for learning-rate schedules."""

    def __init__(self, requests: TextIO, answers: TextIO, total: int) -> None:
        self.requests = requests
        self.answers = answers
        self.total = total
        self.left = 0
        self._fresh()

    def opens(self) -> bool:
        """True when another step is to be run."""
        if self.left == 0:
            self._report()
            request = self.requests.readline().strip()
            if not request:
                return False
            self.left = int(request)
            self._fresh()
        self.left -= 1
        return True

    def record(self, **figures: float) -> None:
        """Figures of one step; the harness compares those that two programs share."""
        for name, value in figures.items():
            self.figures.setdefault(name, []).append(float(value))

    def _fresh(self) -> None:
        self.figures: dict[str, list[float]] = {}
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def _report(self) -> None:
        cpu, wall = time.process_time() - self.cpu, time.perf_counter() - self.wall
        answer = {"cpu": cpu, "wall": wall, "peak": peak_memory(), "figures": self.figures}
        self.answers.write(json.dumps(answer) + "\n")
        self.answers.flush()
