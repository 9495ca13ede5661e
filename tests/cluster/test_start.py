"""What processes of a run see of their machine."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("ray")
import ray

from openrlhf.cluster.start import OWN_DEVICES_ONLY, worker_environment

pytestmark = pytest.mark.cluster


@pytest.mark.timeout(300)
def test_a_worker_sees_its_own_gpu_whatever_ray_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs that Ray only counts, on a machine that was told to leave the environment alone."""
    for name in OWN_DEVICES_ONLY:
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    ray.init(address="local", num_gpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:

        class Worker:
            def devices(self) -> tuple[str | None, list[int]]:
                return os.environ.get("CUDA_VISIBLE_DEVICES"), ray.get_gpu_ids()

        def started(environment: dict[str, str]) -> tuple[str | None, list[int]]:
            worker = ray.remote(Worker).options(num_gpus=1, runtime_env={"env_vars": environment}).remote()
            return tuple(ray.get(worker.devices.remote(), timeout=120))  # and its GPU is free again

        assert started({})[0] is None  # so the variable does what it says
        told, given = started(worker_environment(gpus=True))
        assert told == ",".join(map(str, given)) != ""
    finally:
        ray.shutdown()
