"""A role made of many workers: cut the batch, call every rank, put the answers together.

Each call runs in a thread of its own as *take the lock of the devices → wake → run → sleep*, so roles that share
devices queue up by themselves and roles that do not run at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import ray
import torch
from torch import Tensor

from openrlhf.cluster.calls import ask, await_timed
from openrlhf.cluster.watch import Line
from openrlhf.data.balance import even_shares
from openrlhf.types import Batch, Metrics, pad_columns


class Group:
    """The workers of one role. Verbs return futures."""

    def __init__(
        self,
        role: str,
        workers: Sequence[Any],
        lock: threading.RLock,
        sleeps: bool,
        line: Line,
        deadline_s: float,
        sharing: int = 1,
        worked: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """Each ``sharing`` neighbouring workers get the same rows. ``worked`` hears how long each call kept the slowest
        worker busy."""
        self.role = role
        self.workers = list(workers)
        self.names = [f"{role} worker {i} of {len(workers)}" for i in range(len(workers))]
        self.lock = lock
        self.sleeps = sleeps
        self.line = line
        self.deadline_s = deadline_s
        self.sharing = sharing
        self.worked = worked

    def submit_rows(self, verb: str, batch: Batch, *args: Any) -> Future[Any]:
        """Each worker gets its rows and the same further arguments; a tensor with a row for each row of the batch comes
        back, in its order."""
        return self.line.submit(self._rows_call, verb, batch, args)

    def submit_update(self, batch: Batch, mini_batch: int, *args: Any) -> Future[Any]:
        """Each worker updates on its rows of each ``mini_batch`` rows. The metrics are those of the whole batch on
        every rank: take the first's."""
        return self.line.submit(self._update_call, batch, mini_batch, args)

    def submit_reason(self, verb: str, *args: Any) -> Future[str | None]:
        """Every worker runs ``verb`` with the same arguments. It answers why it failed, or None: what the first that
        failed says."""
        return self.line.submit(self._reason_call, verb, args)

    def call(self, verb: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Blocking, without the lock: the caller holds it or needs none."""
        refs = [ask(worker, verb, *args) for worker, args in zip(self.workers, arguments, strict=True)]
        answers, seconds = await_timed(refs, self.names, verb, self.deadline_s)
        self.worked(seconds)
        return answers

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Hold the devices, with this role's states on them. The same thread may hold them for two roles."""
        nothing: list[tuple[Any, ...]] = [()] * len(self.workers)
        with self.lock:
            if self.sleeps:
                self.call("onload", nothing)
            yield
            if self.sleeps:
                self.call("offload", nothing)

    def kill(self) -> None:
        for worker in self.workers:
            ray.kill(worker)

    def _awake_call(self, verb: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        with self.awake():
            return self.call(verb, arguments)

    def _reason_call(self, verb: str, args: tuple[Any, ...]) -> str | None:
        reasons = self._awake_call(verb, [args] * len(self.workers))
        return next((f"{name}: {reason}" for name, reason in zip(self.names, reasons, strict=True) if reason), None)

    def _update_call(self, batch: Batch, mini_batch: int, args: tuple[Any, ...]) -> Metrics:
        return self._awake_call("update", [(rows, *args) for rows in self._shards(batch, mini_batch)[0]])[0]

    def _rows_call(self, verb: str, batch: Batch, args: tuple[Any, ...]) -> Tensor:
        parts, rows = self._shards(batch, len(batch))
        answers = self._awake_call(verb, [(part, *args) for part in parts])
        return merge(answers[:: self.sharing], rows, len(batch), batch.tokens.shape[1])

    def _shards(self, batch: Batch, mini_batch: int) -> tuple[list[Batch], list[list[int]]]:
        """What each worker gets, and the numbers of the rows of each rank."""
        parts, rows = shard(batch, len(self.workers) // self.sharing, mini_batch)
        return [part for part in parts for _ in range(self.sharing)], rows


def shard(batch: Batch, ranks: int, mini_batch: int) -> tuple[list[Batch], list[list[int]]]:
    """The rows of each rank and their numbers. Every ``mini_batch`` rows are divided by themselves, into as many a rank
    with nearly as many tokens: the mini-batches of all ranks are then those of one rank, cut.

    Rows without loss fill up where the number does not divide: every rank has as many.
    """
    if ranks == 1:
        return [batch], [list(range(len(batch)))]
    batch = batch.with_fillers(ranks)
    rows = even_shares(batch.lengths.tolist(), ranks, mini_batch + -mini_batch % ranks)
    return [batch.select(mine) for mine in rows], rows


def merge(parts: Sequence[Tensor], rows: Sequence[list[int]], number: int, width: int) -> Tensor:
    """Undo ``shard`` for (rows,) or (rows, T) answers to ``number`` rows; zeros pad columns to ``width``."""
    every = sum(map(len, rows))
    out = torch.zeros((every,) if parts[0].dim() == 1 else (every, width), dtype=parts[0].dtype)
    for mine, part in zip(rows, parts, strict=True):
        out[mine] = part if part.dim() == 1 else pad_columns(part, width)
    return out[:number]
