"""New weights from the trainer's processes to the engines' workers, in buckets, without vLLM and without Ray.

A `TCPStore` on trainer rank 0 carries the words (names, shapes, "finished", "failed"). The bytes travel as flat buckets
of one dtype: by broadcast over a process group of their own (``gloo``: CPU tensors over TCP; ``nccl``: GPU to GPU), or
as a handle to the trainer's memory (``ipc``: same GPU, or same machine for CPU tensors). Trainer rank 0 and all workers
of all engines form the broadcast group, so its size is 1 + engines × tensor-parallel size. Every wait ends at the
group's timeout with an error that names who waited for whom; after any error the group is spent, and both sides open a
new one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from openrlhf.backends.meeting import open_store
from openrlhf.backends.vllm_channels import Channel, open_channel
from openrlhf.backends.vllm_store import ALL, SyncBackend, TransferGroup, arrive, visit, wait_for

Bucket = list[tuple[str, Tensor]]

MIB = 1024 * 1024
# Larger ones cost gloo fresh pages from the kernel at every message: half a GB then takes three times as long.
BUCKET_BYTES: dict[SyncBackend, int] = {"gloo": 32 * MIB, "nccl": 256 * MIB, "ipc": 256 * MIB}


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
        return cls(group, visit(group, "a trainer rank"), device, hosting=False)

    def connect(self) -> None:
        """Meet all workers, while every engine is inside ``init_weight_transfer``; TimeoutError if one stays away."""
        who = f"The trainer waited for {self.group.workers} engine workers to join the weight transfer"
        self._channel = open_channel(self.group, self._store, 0, self._device, who)

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
        verdict = wait_for(self._store, f"{sync}/loaded", self.group.timeout, who)
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
        self._store = visit(group, self._me)
        who = f"{self._me} waited for the trainer and the other workers to join the weight transfer"
        self._channel = open_channel(group, self._store, worker + 1, device, who)
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
            header = json.loads(wait_for(self._store, key, self._group.timeout, who))
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
        arrive(self._store, f"sync{self._syncs - 1}/loaded", self._group.workers)

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
