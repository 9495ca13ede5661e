"""What carries one bucket of weights from the trainer to every engine worker: a broadcast, or shared memory.

``gloo``, and ``ipc`` over CPU memory, run in the tests; only GPUs can prove ``nccl``, and ``ipc`` over CUDA memory.
"""

from __future__ import annotations

import pickle
import time
from datetime import timedelta
from multiprocessing.reduction import ForkingPickler
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

from openrlhf.backends.vllm_store import LOOK_S, SyncBackend, TransferGroup, arrive, in_vain, look, wait_for

MEETING_S = 120.0  # a meeting takes no longer, however long a bucket may


class Channel(Protocol):
    """Carries one flat bucket from the trainer to every worker."""

    def send(self, key: str, flat: Tensor) -> None: ...

    def receive(self, key: str, numel: int) -> Tensor: ...

    def close(self) -> None: ...


class Broadcast:
    """Buckets over a process group of torch, separate from the trainer's and vLLM's own groups."""

    def __init__(self, group: TransferGroup, store: dist.Store, rank: int, device: torch.device, who: str) -> None:
        self._dtype, self._timeout, self._who = group.torch_dtype, group.timeout, who
        self._store = store
        self._memory = torch.device("cpu") if group.backend == "gloo" else device
        size, meeting = group.workers + 1, min(group.timeout, timedelta(seconds=MEETING_S))
        try:
            self._backend = _process_group(group.backend, dist.PrefixStore("group", store), rank, size, meeting)
        except RuntimeError as error:
            raise in_vain(who, meeting) from error
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
            raise in_vain(self._who, self._timeout) from error

    def _wait(self, work: Any) -> None:
        """A dead peer breaks gloo's connection, but NCCL would go on waiting: look whether it was broken off."""
        next_look = time.monotonic() + LOOK_S
        while not work.is_completed():
            time.sleep(0.001)
            if time.monotonic() > next_look:
                next_look += LOOK_S
                try:
                    look(self._store, self._who)
                except ConnectionError:
                    self._backend.abort()
                    raise
        work.wait(self._timeout)


class SharedMemory:
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
            arrive(store, "joined", group.workers)
            same = f"{who} (--vllm_sync_backend ipc wants a trainer rank on the same GPU)"
            wait_for(store, f"sender/{self._place}", group.timeout, same)
        wait_for(store, "joined", group.timeout, who)
        self._workers_here = store.add(f"workers/{self._place}", 0)

    def send(self, key: str, flat: Tensor) -> None:
        if self._workers_here == 0:
            return
        if flat.device.type == "cuda":
            torch.cuda.synchronize(flat.device)
        self._store.set(f"{key}/{self._place}", bytes(ForkingPickler.dumps(reduce_tensor(flat))).hex())
        who = f"The trainer waited for the engines on its device to copy the weights' bucket {key}"
        wait_for(self._store, f"{key}/{self._place}/copied", self._timeout, who)
        self._store.delete_key(f"{key}/{self._place}")

    def receive(self, key: str, numel: int) -> Tensor:
        who = f"An engine worker waited for the trainer's handle of the weights' bucket {key}"
        handle = wait_for(self._store, f"{key}/{self._place}", self._timeout, who).decode()
        rebuild, arguments = pickle.loads(bytes.fromhex(handle))
        if rebuild is rebuild_cuda_tensor:  # argument 6 is the sender's number for the GPU; ours can be another
            arguments = (*arguments[:6], self._device.index, *arguments[7:])
        flat = rebuild(*arguments).clone()
        if flat.device.type == "cuda":
            torch.cuda.synchronize(flat.device)
        arrive(self._store, f"{key}/{self._place}/copied", self._workers_here)
        return flat

    def close(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.ipc_collect()


def open_channel(group: TransferGroup, store: dist.Store, rank: int, device: torch.device, who: str) -> Channel:
    if group.backend == "ipc":
        return SharedMemory(group, store, rank, device, who)
    return Broadcast(group, store, rank, device, who)


def _process_group(backend: SyncBackend, store: dist.Store, rank: int, size: int, timeout: timedelta) -> Any:
    """A ``ProcessGroupGloo`` or ``ProcessGroupNCCL``, whose collectives torch's type stubs leave out."""
    if backend == "gloo":
        return dist.ProcessGroupGloo(store, rank, size, timeout)
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timeout
    return dist.ProcessGroupNCCL(store, rank, size, options)
