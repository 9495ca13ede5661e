"""Whether the roles of a run find their devices in the cluster that is there, or that is named."""

from __future__ import annotations

import os
from collections.abc import Iterator

from openrlhf.backends.choose import check_alone
from openrlhf.check.findings import Severity
from openrlhf.cluster.placement import Placement
from openrlhf.cluster.placement import plan as place
from openrlhf.config.commands import PPOConfig, TrainCommand
from openrlhf.config.rules.batches import check_workers
from openrlhf.plan.cluster import Cluster


def look_at_placement(config: PPOConfig, cluster: Cluster | None) -> Iterator[tuple[Severity, str]]:
    """``cluster`` is what --assume names. Without it Ray is asked where RAY_ADDRESS is set, else this machine; where
    there are no GPUs (None) workers are processes on the CPU."""
    if config.placement.local:
        yield "ok", "one process (--local)"
        return
    placement = place(config)
    described = _described(placement)
    if cluster is None and (address := os.environ.get("RAY_ADDRESS")):
        from openrlhf.cluster.start import gpus_there, ray_session

        with ray_session(config):  # which refuses a cluster that is too small
            yield "ok", f"the cluster at RAY_ADDRESS {address} has {gpus_there()} GPUs; {described}"
        return
    if cluster is None:
        yield "ok", f"no GPU is here: {described}, as processes on the CPU; --assume 8xH100-80G names a cluster"
        return
    yield "ok", f"{cluster} has {cluster.gpus} GPUs; {described}"
    if placement.devices > cluster.gpus:
        yield (
            "error",
            f"the run needs {placement.devices} GPUs and {cluster} has {cluster.gpus}: lower "
            "--actor_num_gpus_per_node and its like or --vllm_num_engines, or let roles share GPUs with "
            "--colocate_all_models",
        )
    elif placement.devices < cluster.gpus:
        yield "warning", f"the run uses {placement.devices} of the {cluster.gpus} GPUs of {cluster}: the rest is idle"
    if placement.engine_devices > cluster.per_node:
        yield (
            "error",
            f"--vllm_tensor_parallel_size {placement.engine_devices}: the GPUs of an engine are of one machine, and "
            f"{cluster} has {cluster.per_node} in each",
        )
    for pool in placement.pools:
        if pool.nodes > cluster.nodes or pool.per_node > cluster.per_node:
            yield (
                "warning",
                f"{pool.name} asks for {pool.nodes} machines of {pool.per_node} GPUs, and {cluster} has "
                f"{cluster.nodes} of {cluster.per_node}: the {pool.devices} workers are spread as they fit",
            )


def look_at_processes(config: TrainCommand, workers: int | None) -> Iterator[tuple[Severity, str]]:
    """Of a supervised command: ``workers`` processes of a launcher, None for a process without one."""
    if workers is None:
        check_alone(config.model, config.deepspeed)
        yield "ok", "one process; `deepspeed --module` or `torchrun -m` before the module start several"
        return
    sharing = config.model.ring_attn_size * config.deepspeed.ds_tensor_parallel_size
    if workers % sharing:
        flag = "--ring_attn_size" if config.model.ring_attn_size > 1 else "--ds_tensor_parallel_size"
        raise ValueError(f"{flag} {sharing} does not divide the {workers} processes: choose a multiple of {sharing}.")
    check_workers(config.train, workers // sharing, "")
    yield "ok", f"{workers} processes" + (f", {sharing} of which share rows" if sharing > 1 else "")


def _described(placement: Placement) -> str:
    parts = [f"{pool.name} on {pool.devices}" for pool in placement.pools]
    width = f" × {placement.engine_devices}" if placement.engine_devices > 1 else ""
    where = "on the actor's" if placement.engines_share else "on their own"
    engines = f"{placement.engines}{width} engine{'s' * (placement.engines > 1)} {where}"
    return f"{', '.join(parts)}, {engines}: {placement.devices} devices"
