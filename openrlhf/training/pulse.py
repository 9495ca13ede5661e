"""What each process of a supervised run is at: said when it takes long, and the end of the run when it hangs."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from openrlhf.training import stacks

BEAT_S = 2.0
SAY_S = 60.0  # after so long, and again and again, a line says whom the run waits for
SILENT_BEATS = 8  # a process that misses so many hangs, or is gone
HANGS = 3  # the exit code


@dataclass(frozen=True)
class Beat:
    """Of one process: how far it is, and that it lives."""

    number: int
    phase: str
    after: int  # the step that it has finished
    place: int  # phases so far
    host: str
    pid: int


class Pulse:
    """``enter`` says what comes; a thread watches. Where a phase takes longer than the deadline, all processes of the
    machine write their stacks into ``folder`` and this one ends with code 3 and a sentence."""

    def __init__(self, folder: Path, deadline_s: float) -> None:
        self.folder = folder
        self.deadline_s = deadline_s
        self.rank, self.world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.store = _store() if self.world > 1 else None
        self.others: dict[int, tuple[Beat, float]] = {}  # of each rank the last beat, and when it came
        self.beats = 0
        self.place = 0
        self.ended = threading.Event()
        self.enter("loading", 0)
        stacks.prepare(folder / f"rank {self.rank}.txt")
        self.thread = threading.Thread(target=self._run, name="pulse", daemon=True)
        self.thread.start()

    def enter(self, phase: str, after: int) -> None:
        """The run is at ``phase`` from now on, with ``after`` steps behind it."""
        self.phase, self.after, self.since, self.said = phase, after, time.monotonic(), 0.0
        self.place += 1

    def close(self) -> None:
        self.ended.set()
        self.thread.join(timeout=30)
        stacks.sweep(self.folder)

    def _run(self) -> None:
        while not self.ended.wait(timeout=BEAT_S):
            with suppress(dist.DistError):  # the store went with its process: so the others are gone too
                self._exchange()
            taken = time.monotonic() - self.since
            if taken > self.deadline_s:
                self._end(taken)
            if self.rank == 0 and taken - self.said > SAY_S:
                self.said = taken
                print(f"{self._where(taken)} of at most {self.deadline_s:.0f} s", file=sys.stderr, flush=True)

    def _exchange(self) -> None:
        self.beats += 1
        if self.store is None:
            return
        mine = Beat(self.beats, self.phase, self.after, self.place, socket.gethostname(), os.getpid())
        self.store.set(str(self.rank), json.dumps(asdict(mine)))
        for rank in range(self.world):
            if rank == self.rank or not self.store.check([str(rank)]):
                continue
            beat = Beat(**json.loads(self.store.get(str(rank))))
            if rank not in self.others or self.others[rank][0].number != beat.number:
                self.others[rank] = beat, time.monotonic()

    def _where(self, taken: float) -> str:
        """This process, its phase, and whom it waits for."""
        where = f"rank {self.rank} is in the phase {self.phase} after step {self.after} for {taken:.0f} s"
        late = [text for rank in range(self.world) if (text := self._late(rank))]
        return f"{where}, waiting for {', '.join(late)}" if late else where

    def _late(self, rank: int) -> str | None:
        """What keeps a rank, where it is dead, hangs or is behind this one."""
        if rank == self.rank or rank not in self.others:
            return None
        beat, came = self.others[rank]
        silent = time.monotonic() - came
        if silent > SILENT_BEATS * BEAT_S:
            return f"rank {rank}, which has said nothing for {silent:.0f} s"
        return f"rank {rank}, in the phase {beat.phase} after step {beat.after}" if beat.place < self.place else None

    def _end(self, taken: float) -> None:
        where, here = self._where(taken), socket.gethostname()
        pids = [os.getpid(), *(beat.pid for beat, _ in self.others.values() if beat.host == here)]
        stacks.ask(pids)
        time.sleep(stacks.TIME_S)
        print(
            f"{where}: longer than --deadline. The stacks of all processes are in {self.folder}",
            file=sys.stderr,
        )
        sys.stdout.flush()
        sys.stderr.flush()
        stacks.resume(pids)  # not before: what this process waits for might come, and it would go on
        os._exit(HANGS)


def _store() -> dist.Store:
    """The launcher's, which torchrun keeps while it starts ranks again."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(
        f"pulse {life}", dist.TCPStore(address, port, None, False, timedelta(seconds=60), wait_for_workers=False)
    )
