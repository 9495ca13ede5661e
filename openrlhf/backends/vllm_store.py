"""Where trainer and engines meet for a weight transfer, and how they wait for each other there.

A ``TCPStore`` on trainer rank 0 carries the words. Every wait ends at the group's timeout, or when the meeting is
broken off, with an error that names who waited for whom.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
import torch.multiprocessing

SyncBackend = Literal["gloo", "nccl", "ipc"]

ALL = b"all"
BROKEN = "broken"  # the key under which the store says why nobody should wait any longer
LOOK_S = 2.0  # how often a wait looks for it


@dataclass(frozen=True)
class TransferGroup:
    """Where the two sides meet. Plain values: it travels to engines and to other trainer ranks as it is."""

    address: str  # of trainer rank 0, as the engines see it
    port: int
    workers: int  # engines × tensor-parallel size
    backend: SyncBackend
    dtype: str  # of the engines' weights: "bfloat16" or "float32"; everything is cast to it before it is sent
    timeout_s: float  # for each single wait, not for a whole sync

    @property
    def timeout(self) -> timedelta:
        return timedelta(seconds=self.timeout_s)

    @property
    def torch_dtype(self) -> torch.dtype:
        return {"bfloat16": torch.bfloat16, "float32": torch.float32}[self.dtype]


def visit(group: TransferGroup, who: str) -> dist.TCPStore:
    try:
        return dist.TCPStore(group.address, group.port, None, False, group.timeout, wait_for_workers=False)
    except dist.DistError as error:
        place = f"{group.address}:{group.port}"
        raise TimeoutError(f"{who} waited for the trainer's store at {place}, in vain: {error}") from error


def break_off(group: TransferGroup, reason: str) -> None:
    """Both sides stop waiting for each other, within seconds: one of them is dead, and cannot say so itself."""
    with suppress(TimeoutError, dist.DistError):  # the store went with the trainer
        visit(replace(group, timeout_s=min(group.timeout_s, 5 * LOOK_S)), "The driver").set(BROKEN, reason)


def wait_for(store: dist.Store, key: str, timeout: timedelta, who: str) -> bytes:
    until = time.monotonic() + timeout.total_seconds()
    while True:
        try:
            store.wait([key], timedelta(seconds=max(0.001, min(LOOK_S, until - time.monotonic()))))
            return store.get(key)
        except dist.DistStoreError as error:
            look(store, who)
            if time.monotonic() >= until:
                raise in_vain(who, timeout) from error
        except dist.DistError as error:
            raise ConnectionError(f"{who}, but the trainer's store is gone: {error}") from error


def look(store: dist.Store, who: str) -> None:
    """Raise ConnectionError when it has been broken off."""
    try:
        if store.check([BROKEN]):
            raise ConnectionError(f"{who}, but it was broken off: {store.get(BROKEN).decode()}")
    except dist.DistError as error:
        raise ConnectionError(f"{who}, but the trainer's store is gone: {error}") from error


def in_vain(who: str, timeout: timedelta) -> TimeoutError:
    return TimeoutError(f"{who}, in vain (limit {timeout.total_seconds():g} s).")


def arrive(store: dist.Store, key: str, expected: int) -> None:
    """Count to ``expected``; the last to arrive sets ``key``, which the others' `wait_for` waits for."""
    if store.add(f"{key}/count", 1) == expected:
        store.set(key, ALL.decode())
