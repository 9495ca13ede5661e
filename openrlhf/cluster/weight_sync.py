"""Actor → engines: who sends, who receives, over what. The bytes travel in ``backends/vllm_transfer.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from openrlhf.backends.vllm_store import SyncBackend, TransferGroup, break_off
from openrlhf.cluster.calls import RoleDied, RoleError, Timed, ask, await_all, settle
from openrlhf.cluster.group import Group
from openrlhf.cluster.placement import Placement

# After a failure on one side the others hear of it and have so long to give up: more than the transfer's own limit for
# a meeting.
GIVE_UP_S = 150.0


def sync_backend(flag: str, gpus: bool, placement: Placement) -> SyncBackend:
    """CUDA IPC where an engine lives on the actor's own GPU (NCCL refuses two ranks on one device), else the flag;
    NCCL needs GPUs, so CPU workers use gloo."""
    if not gpus:
        return "gloo"
    if placement.engines_share:
        return "ipc"
    return "nccl" if flag == "nccl" else "gloo"


class WeightSync:
    """One transfer group for all engines, until one of them dies. A sync is one call to an engine and one to each actor
    worker."""

    def __init__(
        self,
        actor: Group,
        engines: list[Any],
        engine_names: Sequence[str],
        engine_devices: int,
        backend: SyncBackend,
        dtype: str,
        deadline_s: float,
    ) -> None:
        """``engines`` changes as engines are replaced."""
        self.actor = actor
        self.engines = engines
        self.engine_devices = engine_devices
        self.deadline_s = deadline_s
        self.names = [*actor.names, *engine_names]
        self.group = TransferGroup("", 0, len(engines) * engine_devices, backend, dtype, deadline_s)

    def meet(self) -> list[int]:
        """Open a new transfer group, where both sides meet; the places of engines that died meanwhile.

        Raises what either side raised while all engines live. So do ``send`` and ``renew``.
        """
        host = self.actor.workers[0].host_transfer.remote(self.group)
        (self.group,) = await_all([host], self.actor.names[:1], "host_transfer", self.deadline_s)
        return self._together(
            "the meeting for the weight transfer",
            [ask(worker, "connect_transfer", self.group) for worker in self.actor.workers],
            [ask(e, "init_weight_transfer", self.group, i * self.engine_devices) for i, e in enumerate(self.engines)],
        )

    def send(self, version: int) -> list[int]:
        """Every engine holds the actor's weights as ``version`` when this returns, except those at the places that it
        returns: they are dead. Where there are any, none can be relied on before ``renew``."""
        return self._together(
            "the weight sync",
            [ask(worker, "send_weights", version) for worker in self.actor.workers],
            [ask(engine, "receive_weights", version) for engine in self.engines],
        )

    def renew(self) -> list[int]:
        """Meet anew, and bring the weights that the actor has by now into every engine, as the version that they are.
        The places of engines that died meanwhile."""
        with self.actor.awake():
            if dead := self.meet():
                return dead
            current = ask(self.actor.workers[0], "weight_version")
            (answer,) = await_all([current], self.actor.names[:1], "weight_version", self.deadline_s)
            return self.send(answer.value)

    def _together(self, what: str, ours: list[ray.ObjectRef], theirs: list[ray.ObjectRef]) -> list[int]:
        """Wait for the calls to the actor's workers and to the engines; the places of engines that are dead."""
        outcomes = settle([*ours, *theirs], self.names, what, self.deadline_s, self._break_off)
        lost = [isinstance(outcome, RoleDied | TimeoutError) for outcome in outcomes]
        dead = [place for place, is_lost in enumerate(lost[len(ours) :]) if is_lost]
        failures = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        if any(lost[: len(ours)]) or (failures and not dead):
            raise next((failure for failure in failures if isinstance(failure, RoleDied)), failures[0])
        if not dead:
            self.actor.worked(max(outcome.seconds for outcome in outcomes if isinstance(outcome, Timed)))
        return dead

    def _break_off(self, place: int, error: RoleError) -> float:
        break_off(self.group, str(error))
        return GIVE_UP_S
