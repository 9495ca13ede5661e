"""Actor → engines: who sends, who receives, over what. The bytes travel in ``backends/vllm_transfer.py``."""

from __future__ import annotations

from typing import Any

from openrlhf.backends.vllm_transfer import SyncBackend, TransferGroup
from openrlhf.cluster.calls import ask, await_all, await_timed
from openrlhf.cluster.group import Group
from openrlhf.cluster.placement import Placement


def sync_backend(flag: str, gpus: bool, placement: Placement) -> SyncBackend:
    """CUDA IPC where an engine lives on the actor's own GPU (NCCL refuses two ranks on one device), else the flag;
    NCCL needs GPUs, so CPU workers use gloo."""
    if not gpus:
        return "gloo"
    if placement.engines_share:
        return "ipc"
    return "nccl" if flag == "nccl" else "gloo"


class WeightSync:
    """One transfer group for the run. A sync is one call to an engine and one to each actor worker."""

    def __init__(
        self, actor: Group, engines: list[Any], engine_names: list[str], engine_devices: int, deadline_s: float
    ) -> None:
        self.actor = actor
        self.engines = engines
        self.engine_names = engine_names
        self.engine_devices = engine_devices
        self.deadline_s = deadline_s

    def connect(self, backend: SyncBackend, dtype: str) -> None:
        """Both sides meet. Raises what either side raised."""
        plan = TransferGroup("", 0, len(self.engines) * self.engine_devices, backend, dtype, self.deadline_s)
        rank0 = self.actor.workers[0]
        (group,) = await_all([rank0.host_transfer.remote(plan)], self.actor.names[:1], "host_transfer", self.deadline_s)
        await_all(
            [
                *(worker.connect_transfer.remote(group) for worker in self.actor.workers),
                *(e.init_weight_transfer.remote(group, i * self.engine_devices) for i, e in enumerate(self.engines)),
            ],
            self._names,
            "the meeting for the weight transfer",
            self.deadline_s,
        )

    def send(self, version: int) -> None:
        """Every engine holds the actor's weights as ``version`` when this returns."""
        _, seconds = await_timed(
            [
                *(ask(worker, "send_weights", version) for worker in self.actor.workers),
                *(ask(engine, "receive_weights", version) for engine in self.engines),
            ],
            self._names,
            "the weight sync",
            self.deadline_s,
        )
        self.actor.worked(seconds)

    @property
    def _names(self) -> list[str]:
        return [*self.actor.names, *self.engine_names]
