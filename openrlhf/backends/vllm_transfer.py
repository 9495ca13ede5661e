"""New weights from the trainer's processes to the engines' workers, in buckets, without vLLM and without Ray.

A `TCPStore` on trainer rank 0 carries the words (names, shapes, "finished", "failed"). The bytes travel as flat buckets
of one dtype: by broadcast over a process group of their own (``gloo``: CPU tensors over TCP; ``nccl``: GPU to GPU), or
as a handle to the trainer's memory (``ipc``: same GPU, or same machine for CPU tensors). Trainer rank 0 and all workers
of all engines form the broadcast group, so its size is 1 + engines × tensor-parallel size. Every wait ends at the
group's timeout with an error that names who waited for whom; after any error the group is spent, and both sides open a
new one.

``gloo``, and ``ipc`` over CPU memory, run in the tests; only GPUs can prove ``nccl``, and ``ipc`` over CUDA memory.
"""

from __future__ import annotations

import json
import math
import pickle
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.reduction import ForkingPickler
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

from openrlhf.backends.meeting import open_store

SyncBackend = Literal["gloo", "nccl", "ipc"]
Bucket = list[tuple[str, Tensor]]

MIB = 1024 * 1024
# Larger ones cost gloo fresh pages from the kernel at every message: half a GB then takes three times as long.
BUCKET_BYTES: dict[SyncBackend, int] = {"gloo": 32 * MIB, "nccl": 256 * MIB, "ipc": 256 * MIB}
ALL = b"all"
BROKEN = "broken"  # the key under which the store says why nobody should wait any longer
LOOK_S = 2.0  # how often a wait looks for it
MEETING_S = 120.0  # a meeting takes no longer, however long a bucket may


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


class Channel(Protocol):
    """Carries one flat bucket from the trainer to every worker."""

    def send(self, key: str, flat: Tensor) -> None: ...

    def receive(self, key: str, numel: int) -> Tensor: ...

    def close(self) -> None: ...


class WeightSender:
    """The trainer's end: on rank 0 (`host`), and with ``ipc`` on every rank whose GPU an engine shares (`peer`)."""

    def __init__(self, group: TransferGroup, store: dist.TCPStore, device: torch.device, hosting: bool) -> None:
        self.group = group
        self._store = store
        self._device = device
        self._hosting = hosting
        self._channel: Channel | None = None
        self._syncs = 0

    @classmethod
    def host(
        cls,
        address: str,
        workers: int,
        backend: SyncBackend,
        dtype: str,
        device: torch.device,
        timeout_s: float = 600.0,
    ) -> WeightSender:
        """Open the meeting place on a free port; `group` then says where it is."""
        store = open_store(address, timedelta(seconds=timeout_s))
        return cls(TransferGroup(address, store.port, workers, backend, dtype, timeout_s), store, device, hosting=True)

    @classmethod
    def peer(cls, group: TransferGroup, device: torch.device) -> WeightSender:
        """A further trainer rank's end, for ``ipc`` alone: it serves the engine workers on its own GPU."""
        if group.backend != "ipc":
            raise ValueError(f"Only trainer rank 0 sends over {group.backend}; other ranks iterate over their weights.")
        return cls(group, _visit(group, "a trainer rank"), device, hosting=False)

    def connect(self) -> None:
        """Meet all workers, while every engine is inside ``init_weight_transfer``; TimeoutError if one stays away."""
        who = f"The trainer waited for {self.group.workers} engine workers to join the weight transfer"
        self._channel = _open_channel(self.group, self._store, 0, self._device, who)

    def send(self, weights: Iterable[tuple[str, Tensor]], version: int, bucket_bytes: int | None = None) -> None:
        """Send (Hugging Face name, full tensor) pairs; return when every worker has loaded them as ``version``.

        Tensors are copied one at a time, so an iterator may free each before it yields the next.

        Raises:
            RuntimeError: the group is not connected (or spent by an error), or an engine could not load the weights.
            TimeoutError: an engine did not take a bucket, or did not finish, within the group's timeout.
            ConnectionError: an engine's process ended.
        """
        if self._channel is None:
            raise RuntimeError("The weight transfer is not connected (or failed before): connect a new group first.")
        channel, self._channel = self._channel, None  # an error on the way leaves the group spent
        sync, count = f"sync{self._syncs}", 0
        self._syncs += 1
        try:
            most = bucket_bytes or BUCKET_BYTES[self.group.backend]
            for names, shapes, flat in _flat_buckets(weights, self.group.torch_dtype, self._memory(), most):
                self._tell(f"{sync}/{count}", {"version": version, "names": names, "shapes": shapes})
                channel.send(f"{sync}/{count}", flat)
                count += 1
        except BaseException as error:
            self._tell(f"{sync}/{count}", {"version": version, "error": f"{type(error).__name__}: {error}"})
            raise
        self._tell(f"{sync}/{count}", {"version": version})
        who = "The trainer waited for the engines to load the weights"
        verdict = _await(self._store, f"{sync}/loaded", self.group.timeout, who)
        if verdict != ALL:
            raise RuntimeError(f"Weight version {version} was not loaded. {verdict.decode()}")
        if self._hosting:
            for index in range(count):
                self._store.delete_key(f"{sync}/{index}")
        self._channel = channel

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = None

    def _memory(self) -> torch.device:
        return torch.device("cpu") if self.group.backend == "gloo" else self._device

    def _tell(self, key: str, header: dict[str, object]) -> None:
        if self._hosting:
            self._store.set(key, json.dumps(header))


class WeightReceiver:
    """One engine worker's end. ``worker`` counts over all engines, from 0."""

    def __init__(self, group: TransferGroup, worker: int, device: torch.device) -> None:
        self._group = group
        self._me = f"Engine worker {worker}"
        self._store = _visit(group, self._me)
        who = f"{self._me} waited for the trainer and the other workers to join the weight transfer"
        self._channel = _open_channel(group, self._store, worker + 1, device, who)
        self._syncs = 0

    def receive(self, version: int) -> Iterator[Bucket]:
        """Yield the buckets of one sync. Their tensors share no memory with later buckets and may be kept.

        Raises:
            RuntimeError: the trainer failed on its side, or sends another version than ``version``.
            TimeoutError: the trainer sent nothing within the group's timeout.
            ConnectionError: the trainer's process ended.
        """
        sync, index = f"sync{self._syncs}", 0
        self._syncs += 1
        while True:
            key = f"{sync}/{index}"
            who = f"{self._me} waited for the trainer to send bucket {index} of weight version {version}"
            header = json.loads(_await(self._store, key, self._group.timeout, who))
            if "error" in header:
                raise RuntimeError(f"The trainer stopped sending weight version {version}: {header['error']}")
            if header["version"] != version:
                sent = header["version"]
                raise RuntimeError(f"{self._me} expected weight version {version}, the trainer sends {sent}.")
            if "names" not in header:
                return
            sizes = [math.prod(shape) for shape in header["shapes"]]
            parts = self._channel.receive(key, sum(sizes)).split(sizes)
            yield [(n, part.view(s)) for n, part, s in zip(header["names"], parts, header["shapes"], strict=True)]
            index += 1

    def acknowledge(self) -> None:
        """Tell the trainer that this worker runs with the weights just received."""
        _arrive(self._store, f"sync{self._syncs - 1}/loaded", self._group.workers)

    def refuse(self, rest: Iterator[Bucket], error: Exception) -> None:
        """Tell the trainer that the weights were not loaded, after taking the rest of them off its hands."""
        with suppress(RuntimeError, TimeoutError, ConnectionError):  # then the trainer has an error of its own
            for _ in rest:
                pass
            self._store.set(f"sync{self._syncs - 1}/loaded", f"{self._me}: {type(error).__name__}: {error}")

    def close(self) -> None:
        self._channel.close()


def _flat_buckets(
    weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype, memory: torch.device, bucket_bytes: int
) -> Iterator[tuple[list[str], list[list[int]], Tensor]]:
    """Names, shapes and one flat tensor a bucket. The flat memory is used again for the next bucket."""
    capacity = max(1, bucket_bytes // dtype.itemsize)
    buffer = torch.empty(capacity, dtype=dtype, device=memory)
    names: list[str] = []
    shapes: list[list[int]] = []
    filled = 0
    for name, tensor in weights:
        size = tensor.numel()
        if names and filled + size > capacity:
            yield names, shapes, buffer[:filled]
            names, shapes, filled = [], [], 0
        if size > capacity:  # one tensor larger than a bucket is a bucket of its own
            yield [name], [list(tensor.shape)], tensor.detach().to(memory, dtype, copy=True).flatten()
            continue
        buffer[filled : filled + size].copy_(tensor.detach().reshape(-1))
        names.append(name)
        shapes.append(list(tensor.shape))
        filled += size
    if names:
        yield names, shapes, buffer[:filled]


class _Broadcast:
    """Buckets over a process group of torch, separate from the trainer's and vLLM's own groups."""

    def __init__(self, group: TransferGroup, store: dist.Store, rank: int, device: torch.device, who: str) -> None:
        self._dtype, self._timeout, self._who = group.torch_dtype, group.timeout, who
        self._store = store
        self._memory = torch.device("cpu") if group.backend == "gloo" else device
        size, meeting = group.workers + 1, min(group.timeout, timedelta(seconds=MEETING_S))
        try:
            self._backend = _process_group(group.backend, dist.PrefixStore("group", store), rank, size, meeting)
        except RuntimeError as error:
            raise _in_vain(who, meeting) from error
        self._run(torch.zeros(1, dtype=self._dtype, device=self._memory))  # NCCL connects at its first collective

    def send(self, key: str, flat: Tensor) -> None:
        self._who = f"The trainer waited for the engines to take the weights' bucket {key}"
        self._run(flat)

    def receive(self, key: str, numel: int) -> Tensor:
        self._who = f"An engine worker waited for the trainer to broadcast the weights' bucket {key}"
        flat = torch.empty(numel, dtype=self._dtype, device=self._memory)
        self._run(flat)
        return flat

    def close(self) -> None:
        self._backend.shutdown()

    def _run(self, flat: Tensor) -> None:
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor, options.timeout = 0, 0, self._timeout
        started = time.monotonic()
        try:
            self._wait(self._backend.broadcast([flat], options))
        except RuntimeError as error:
            if time.monotonic() - started < self._timeout.total_seconds():
                raise ConnectionError(f"{self._who}, but the connection broke: {error}") from error
            raise _in_vain(self._who, self._timeout) from error

    def _wait(self, work: Any) -> None:
        """A dead peer breaks gloo's connection, but NCCL would go on waiting: look whether it was broken off."""
        look = time.monotonic() + LOOK_S
        while not work.is_completed():
            time.sleep(0.001)
            if time.monotonic() > look:
                look += LOOK_S
                try:
                    _look(self._store, self._who)
                except ConnectionError:
                    self._backend.abort()
                    raise
        work.wait(self._timeout)


class _SharedMemory:
    """Buckets as handles to the sender's memory; a worker copies a bucket out and says so before the sender goes on.

    On a GPU both sides must sit on the same device: each trainer rank serves the workers of its own GPU, told apart by
    the GPU's UUID. On CPU the memory is a shared file of this machine (in /dev/shm, which must hold a bucket).
    """

    def __init__(self, group: TransferGroup, store: dist.Store, rank: int, device: torch.device, who: str) -> None:
        self._store, self._timeout, self._device = store, group.timeout, device
        self._place = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else "cpu"
        if rank == 0:
            store.set(f"sender/{self._place}", "here")
            if device.type == "cpu":  # file descriptors pass only between relatives; names pass between any processes
                torch.multiprocessing.set_sharing_strategy("file_system")
        else:
            store.add(f"workers/{self._place}", 1)
            _arrive(store, "joined", group.workers)
            same = f"{who} (--vllm_sync_backend ipc wants a trainer rank on the same GPU)"
            _await(store, f"sender/{self._place}", group.timeout, same)
        _await(store, "joined", group.timeout, who)
        self._workers_here = store.add(f"workers/{self._place}", 0)

    def send(self, key: str, flat: Tensor) -> None:
        if self._workers_here == 0:
            return
        if flat.device.type == "cuda":
            torch.cuda.synchronize(flat.device)
        self._store.set(f"{key}/{self._place}", bytes(ForkingPickler.dumps(reduce_tensor(flat))).hex())
        who = f"The trainer waited for the engines on its device to copy the weights' bucket {key}"
        _await(self._store, f"{key}/{self._place}/copied", self._timeout, who)
        self._store.delete_key(f"{key}/{self._place}")

    def receive(self, key: str, numel: int) -> Tensor:
        who = f"An engine worker waited for the trainer's handle of the weights' bucket {key}"
        handle = _await(self._store, f"{key}/{self._place}", self._timeout, who).decode()
        rebuild, arguments = pickle.loads(bytes.fromhex(handle))
        if rebuild is rebuild_cuda_tensor:  # argument 6 is the sender's number for the GPU; ours can be another
            arguments = (*arguments[:6], self._device.index, *arguments[7:])
        flat = rebuild(*arguments).clone()
        if flat.device.type == "cuda":
            torch.cuda.synchronize(flat.device)
        _arrive(self._store, f"{key}/{self._place}/copied", self._workers_here)
        return flat

    def close(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.ipc_collect()


def _open_channel(group: TransferGroup, store: dist.Store, rank: int, device: torch.device, who: str) -> Channel:
    if group.backend == "ipc":
        return _SharedMemory(group, store, rank, device, who)
    return _Broadcast(group, store, rank, device, who)


def _process_group(backend: SyncBackend, store: dist.Store, rank: int, size: int, timeout: timedelta) -> Any:
    """A ``ProcessGroupGloo`` or ``ProcessGroupNCCL``, whose collectives torch's type stubs leave out."""
    if backend == "gloo":
        return dist.ProcessGroupGloo(store, rank, size, timeout)
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timeout
    return dist.ProcessGroupNCCL(store, rank, size, options)


def _visit(group: TransferGroup, who: str) -> dist.TCPStore:
    try:
        return dist.TCPStore(group.address, group.port, None, False, group.timeout, wait_for_workers=False)
    except dist.DistError as error:
        place = f"{group.address}:{group.port}"
        raise TimeoutError(f"{who} waited for the trainer's store at {place}, in vain: {error}") from error


def break_off(group: TransferGroup, reason: str) -> None:
    """Both sides stop waiting for each other, within seconds: one of them is dead, and cannot say so itself."""
    with suppress(TimeoutError, dist.DistError):  # the store went with the trainer
        _visit(replace(group, timeout_s=min(group.timeout_s, 5 * LOOK_S)), "The driver").set(BROKEN, reason)


def _await(store: dist.Store, key: str, timeout: timedelta, who: str) -> bytes:
    until = time.monotonic() + timeout.total_seconds()
    while True:
        try:
            store.wait([key], timedelta(seconds=max(0.001, min(LOOK_S, until - time.monotonic()))))
            return store.get(key)
        except dist.DistStoreError as error:
            _look(store, who)
            if time.monotonic() >= until:
                raise _in_vain(who, timeout) from error
        except dist.DistError as error:
            raise ConnectionError(f"{who}, but the trainer's store is gone: {error}") from error


def _look(store: dist.Store, who: str) -> None:
    """Raise ConnectionError when it has been broken off."""
    try:
        if store.check([BROKEN]):
            raise ConnectionError(f"{who}, but it was broken off: {store.get(BROKEN).decode()}")
    except dist.DistError as error:
        raise ConnectionError(f"{who}, but the trainer's store is gone: {error}") from error


def _in_vain(who: str, timeout: timedelta) -> TimeoutError:
    return TimeoutError(f"{who}, in vain (limit {timeout.total_seconds():g} s).")


def _arrive(store: dist.Store, key: str, expected: int) -> None:
    """Count to ``expected``; the last to arrive sets ``key``, which the others' `_await` waits for."""
    if store.add(f"{key}/count", 1) == expected:
        store.set(key, ALL.decode())
