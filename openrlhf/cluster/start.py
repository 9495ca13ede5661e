"""Ray actors for a placement: bundles, workers, engines. What runs on a GPU machine runs on CPU workers alike."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from openrlhf.backends.vllm import VLLMEngine, engine_environment
from openrlhf.cluster.calls import GROUPS, await_all
from openrlhf.cluster.placement import Placement, Pool, plan
from openrlhf.cluster.worker import WORKERS
from openrlhf.config.commands import PPOConfig
from openrlhf.models.hub import local_folder

GPU_SHARE = 0.2  # of a device, for each role in a shared pool: Ray then lets them live together
# With one of these set to 1 where Ray was started, it would show every process all devices of its machine, and each
# would take the first one. Where it may show them their own, nobody counts devices.
OWN_DEVICES_ONLY = {
    f"RAY_EXPERIMENTAL_NOSET_{name}": ""
    for name in (
        *("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES"),
        *("HABANA_VISIBLE_MODULES", "ZE_AFFINITY_MASK", "NEURON_RT_VISIBLE_CORES", "TPU_VISIBLE_CHIPS"),
    )
}
CPU_SHARE = 0.01  # workers without GPUs are processes that share the cores as the system sees fit


@contextmanager
def ray_session(config: PPOConfig) -> Iterator[None]:
    """Inside, Ray is there and has the devices that the run needs; before any model is loaded.

    Joins the cluster that RAY_ADDRESS names (``ray job submit`` sets it), or starts one on this machine, its ports on
    loopback and without the dashboard, and ends it afterwards. Raises ValueError when devices are missing.
    """
    joins = bool(os.environ.get("RAY_ADDRESS"))
    # "local", since without an address Ray would try, for minutes, a cluster that died here earlier.
    ray.init(
        address="auto" if joins else "local",
        include_dashboard=None if joins else False,
        log_to_driver=bool(os.environ.get("OPENRLHF_WORKER_LOGS")),
        configure_logging=False,
    )
    try:
        check_devices(plan(config), gpus_there())
        yield
    finally:
        if not joins:
            ray.shutdown()


def gpus_there() -> int:
    return int(ray.cluster_resources().get("GPU", 0))


def check_devices(placement: Placement, there: int) -> None:
    """Raises ValueError when the cluster has GPUs, but fewer than the run needs. Without any, workers use the CPU."""
    if 0 < there < placement.devices:
        raise ValueError(
            f"the run needs {placement.devices} GPUs (--actor_num_gpus_per_node and its like, --vllm_num_engines) and "
            f"the cluster has {there}: use fewer, let roles share them with --colocate_all_models, or join a larger "
            "cluster with RAY_ADDRESS=auto"
        )


def start_workers(pool: Pool, config: PPOConfig, gpus: bool, deadline_s: float) -> dict[str, list[Any]]:
    """The workers of every role in the pool: worker i of each role sits on device i of the pool."""
    bundle = {"GPU": 1.0, "CPU": 1.0} if gpus else {"CPU": CPU_SHARE * len(pool.roles)}
    bundles = [bundle] * pool.devices
    group = reserve(bundles, pool.name, "PACK", deadline_s)
    alone = len(pool.roles) == 1
    started: dict[str, list[Any]] = {}
    for role in pool.roles:
        started[role] = [
            ray.remote(concurrency_groups=GROUPS)(WORKERS[role])
            .options(
                num_cpus=CPU_SHARE,
                num_gpus=(1.0 if alone else GPU_SHARE) if gpus else 0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
                runtime_env={"env_vars": worker_environment(gpus)},
            )
            .remote(config, rank, pool.devices)
            for rank in range(pool.devices)
        ]
    return started


def worker_environment(gpus: bool) -> dict[str, str]:
    if gpus:
        return OWN_DEVICES_ONLY
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "DS_ACCELERATOR": "cpu"}


def engine_starter(
    placement: Placement, config: PPOConfig, gpus: bool, neighbours: list[Any], deadline_s: float
) -> Callable[[int], Any]:
    """What starts the engine with a number, as often as it is needed: a vLLM engine as an actor, on devices of its own
    or on those of ``neighbours``, the workers of the actor."""
    size = placement.engine_devices
    share = placement.engines_share and gpus
    ids = await_all(
        [worker.gpu_ids.remote() for worker in neighbours], ["actor worker"] * len(neighbours), "gpu_ids", deadline_s
    ) if share else []  # fmt: skip

    def start(number: int) -> Any:
        environment = {**OWN_DEVICES_ONLY, **engine_environment(gpus, size)}
        options: dict[str, Any] = {"num_cpus": CPU_SHARE, "num_gpus": size if gpus and not share else 0}
        if share:
            # The engine sees the GPUs of its neighbours: Ray cannot give one actor shares of several bundles.
            mine = [gpu for worker in ids[number * size : (number + 1) * size] for gpu in worker]
            environment |= {
                "CUDA_VISIBLE_DEVICES": ",".join(mine),
                "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
            }
        options["runtime_env"] = {"env_vars": environment}
        engine = ray.remote(concurrency_groups=GROUPS)(VLLMEngine)
        return engine.options(**options).remote(**engine_arguments(config, number))

    return start


def engine_arguments(config: PPOConfig, number: int) -> dict[str, Any]:
    vllm = config.vllm
    return {
        "model": local_folder(config.model.pretrain, config.model, "--pretrain"),
        "dtype": engine_dtype(config),
        "tensor_parallel_size": vllm.vllm_tensor_parallel_size,
        "gpu_memory_utilization": vllm.vllm_gpu_memory_utilization,
        "enforce_eager": vllm.enforce_eager,
        "enable_prefix_caching": vllm.enable_prefix_caching,
        "enable_sleep_mode": vllm.vllm_enable_sleep,
        "max_model_len": config.prompts.prompt_max_len + config.rollout.generate_max_len,
        "seed": config.train.seed + number,
        "trust_remote_code": config.model.trust_remote_code,
        "interruptible": config.rollout.partial_rollout,
    }


def engine_dtype(config: PPOConfig) -> str:
    return "bfloat16" if config.model.bf16 else "float32"


def reserve(bundles: list[dict[str, float]], name: str, strategy: str, deadline_s: float) -> PlacementGroup:
    """Raises TimeoutError when the cluster does not have the devices in time."""
    group = placement_group(bundles, strategy=strategy)
    ready, _ = ray.wait([group.ready()], timeout=deadline_s)
    if not ready:
        raise TimeoutError(f"the cluster did not give the devices for {name} ({bundles}) within {deadline_s:.0f} s")
    return group
