"""The processes of one RL run on Ray and the threads that speak with them, which end together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from openrlhf.cluster.watch import Line, Watch
from openrlhf.training.roles import PartLost


class Processes:
    def __init__(self, stacks: Path, deadline_s: float) -> None:
        """``stacks`` is the folder for what every process does when one of them hangs."""
        self.watch = Watch(stacks, deadline_s)
        self.calls = Line(self.watch, 16, "role")
        # What is asked of these comes in the order in which it was asked for: one thread each.
        self.turns, self.rewarding, self.syncing = (
            Line(self.watch, 1, name) for name in ("engines", "rewards", "sync")
        )
        self.workers: list[Any] = []
        self.engines: list[Any] = []  # which may be replaced by others

    @contextmanager
    def ended_together(self) -> Iterator[None]:
        """Inside, they work; afterwards none is left, whatever happened."""
        whole = True
        try:
            yield
        except (TimeoutError, PartLost) as failure:
            whole = False
            if isinstance(failure, TimeoutError) or isinstance(failure.__cause__, TimeoutError):
                self.watch.write_stacks()
            raise
        finally:
            self.watch.close()
            for process in [*self.workers, *self.engines]:
                ray.kill(process)
            # What is left in line fails at once, as its workers are dead. A future that is cancelled in line would
            # never tell those that wait for it, and a thread that outlived Ray would never end.
            # But where a process is lost, this one ends at once, whatever its threads wait for.
            for line in (self.turns, self.rewarding, self.syncing, self.calls):
                line.shutdown(wait=whole)
