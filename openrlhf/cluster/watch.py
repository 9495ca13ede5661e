"""Is everybody still there? Asks every process of a run again and again, and ends the wait for those that are not."""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from openrlhf.cluster.calls import ASIDE, RoleDied, why_dead
from openrlhf.training import stacks
from openrlhf.training.roles import PartLost

T = TypeVar("T")

ASK_EVERY_S = 2.0
HEAD_S = 10.0  # Ray's head is given so long to come back; Ray itself would end this process without a word after 60
SILENCE_S = 120.0  # a process that answers nothing for so long, not even this, hangs


@dataclass
class Watched:
    name: str
    actor: Any
    lost: Callable[[str], None]  # what to do when it is, and why
    question: ray.ObjectRef
    asked: float
    place: tuple[int, str] | None = None  # its process and node, once it has answered


class Watch:
    """Of a training rank that dies or hangs, ``cause`` then tells, and every future that was asked for in a ``Line``
    ends with it. An engine that hangs is killed: then it counts as dead, and others deal with that."""

    def __init__(self, folder: Path, deadline_s: float) -> None:
        """``folder`` gets the stacks of all processes when one of them hangs."""
        self.folder = folder
        self.silence_s = min(SILENCE_S, deadline_s)
        self.cause: PartLost | None = None
        self.hangs_count = False  # not before everything is loaded, which may hold a process up for long
        self._watched: dict[str, Watched] = {}
        self._open: set[Future[Any]] = set()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._written = False
        self._head, self._head_seen = head_address(), time.monotonic()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def add(self, names: Sequence[str], actors: Sequence[Any], engines: bool = False) -> None:
        """Watch them, instead of those that had these names before."""
        for name, actor in zip(names, actors, strict=True):
            lost = self._kill_silent(name) if engines else self._lose(name)
            self._watched[name] = Watched(name, actor, lost, self._question(name, actor), time.monotonic())

    def check(self) -> None:
        """Raise ``cause`` when there is one."""
        if self.cause is not None:
            raise self.cause

    def bound(self, future: Future[T]) -> Future[T]:
        """The same, which fails at once when a process is lost."""
        out: Future[T] = Future()
        with self._lock:
            if self.cause is not None:
                out.set_exception(self.cause)
                return out
            self._open.add(out)
        future.add_done_callback(lambda done: self._pass_on(done, out))
        return out

    def write_stacks(self) -> None:
        """Every process writes into the folder where it stands, as this one does. One that was stopped goes on.

        Only the first time: later ones would show how the run ends."""
        if self._written:
            return
        self._written = True
        nodes: dict[str, list[int]] = defaultdict(list)
        for watched in list(self._watched.values()):
            if watched.place is not None:
                nodes[watched.place[1]].append(watched.place[0])
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "driver.txt").open("w") as file:
            faulthandler.dump_traceback(file)
        for node, pids in nodes.items():
            on_node(node, stacks.ask, pids)
            on_node(node, stacks.resume, pids)
        time.sleep(stacks.TIME_S)
        print(f"the stacks of all processes are in {self.folder}", file=sys.stderr)

    def close(self) -> None:
        """Stop watching, when all stacks are written. Of a run in which nothing hung they are empty files, and go."""
        self._fail(PartLost("the run has ended"))
        self._ended.set()
        self._thread.join(timeout=60)
        stacks.sweep(self.folder)

    def _question(self, name: str, actor: Any) -> ray.ObjectRef:
        return actor.__ray_call__.options(concurrency_group=ASIDE).remote(_present, self.folder / f"{name}.txt")

    def _run(self) -> None:
        while not self._ended.wait(timeout=ASK_EVERY_S):
            if not is_gone(self._head):
                self._head_seen = time.monotonic()
            elif time.monotonic() - self._head_seen > HEAD_S:
                self._fail(PartLost(f"Ray's head, at {self._head}, is gone"))
                return
            for watched in list(self._watched.values()):
                self._look(watched)

    def _look(self, watched: Watched) -> None:
        now = time.monotonic()
        if ray.wait([watched.question], timeout=0)[0]:
            try:
                watched.place = ray.get(watched.question, timeout=60)
            except RayActorError as error:
                self._take_out(watched, f"died: {why_dead(error)}")
                return
            watched.question, watched.asked = self._question(watched.name, watched.actor), now
        elif not self.hangs_count or watched.place is None:
            watched.asked = now
        elif now - watched.asked > self.silence_s:
            self._take_out(watched, f"hangs: it has answered nothing for {self.silence_s:.0f} s")

    def _take_out(self, watched: Watched, why: str) -> None:
        if self._watched.get(watched.name) is watched:
            watched.lost(why)
            watched.lost = lambda why: None

    def _lose(self, name: str) -> Callable[[str], None]:
        def lose(why: str) -> None:
            self._fail(RoleDied(f"{name} {why}"))
            if why.startswith("hangs"):
                self.write_stacks()

        return lose

    def _kill_silent(self, name: str) -> Callable[[str], None]:
        def kill(why: str) -> None:
            watched = self._watched[name]
            if why.startswith("hangs") and watched.place is not None:
                print(f"{name} {why}; it is ended", file=sys.stderr)
                pid, node = watched.place
                on_node(node, _kill, pid)

        return kill

    def _fail(self, cause: PartLost) -> None:
        with self._lock:
            if self.cause is None:
                self.cause = cause
            waiting, self._open = self._open, set()
        for future in waiting:
            future.set_exception(self.cause)

    def _pass_on(self, done: Future[T], out: Future[T]) -> None:
        with self._lock:
            if out not in self._open:
                return
            self._open.remove(out)
        if (failure := done.exception(timeout=0)) is not None:
            out.set_exception(failure)
        else:
            out.set_result(done.result(timeout=0))


class Line:
    """Threads that work off what is asked for; ``submit`` as theirs, bound to the watch."""

    def __init__(self, watch: Watch, threads: int, name: str) -> None:
        self.watch = watch
        self.pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix=name)

    def submit(self, function: Callable[..., T], *args: Any) -> Future[T]:
        return self.watch.bound(self.pool.submit(function, *args))

    def shutdown(self, wait: bool) -> None:
        self.pool.shutdown(wait=wait)


def head_address() -> str:
    """Host and port of the head of the cluster that this process is in."""
    address: str = ray.get_runtime_context().gcs_address
    return address


def is_gone(address: str) -> bool:
    """Whether nobody listens there any more. A machine that does not answer may only be busy."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ASK_EVERY_S).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def on_node(node: str, function: Callable[..., None], *args: Any) -> None:
    """Run a function on a node of the cluster."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    ray.wait([ray.remote(function).options(num_cpus=0, scheduling_strategy=there).remote(*args)], timeout=60)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _present(actor: Any, path: Path) -> tuple[int, str]:
    """Runs in the actor: its process and node. The first time it prepares to write its stacks at a signal."""
    if not stacks.prepared():
        stacks.prepare(path)
    return os.getpid(), ray.get_runtime_context().get_node_id()
