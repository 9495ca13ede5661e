"""A real vLLM engine on two devices, which has processes of its own for its core and its workers: one of them dies."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from openrlhf.backends.vllm import VLLMEngine, engine_environment
from openrlhf.rollout.engine import SamplingParams

ray = pytest.importorskip("ray")
pytest.importorskip("vllm")
pytestmark = [pytest.mark.cluster, pytest.mark.slow]

DEADLINE_S = 300.0
PROMPTS = [[5, 6, 7], [40, 41, 42, 43], [9], [100, 3]]


class Same:
    """In place of a weight sync: all engines have loaded the same weights."""

    def renew(self) -> list[int]:
        return []


@pytest.mark.timeout(600)
def test_r10_an_engine_whose_worker_died_is_replaced(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The worker is stopped first, so that it dies in the middle of its answer. The new engine has one device, as that
    is quicker; it samples the same."""
    from openrlhf import cluster  # noqa: F401  (Ray on loopback)
    from openrlhf.cluster.calls import GROUPS
    from openrlhf.cluster.engines import Engines

    def start(size: int) -> Any:
        options: dict[str, Any] = {"num_cpus": 0, "runtime_env": {"env_vars": engine_environment(False, size)}}
        engine = ray.remote(concurrency_groups=GROUPS)(VLLMEngine).options(**options)
        return engine.remote(
            model=str(tiny_folder), dtype="float32", tensor_parallel_size=size, enforce_eager=True, max_model_len=64
        )

    ray.init(address="local", include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        actor = start(2)
        engines = Engines([actor], ["engine 0 of 1"], lambda place: start(1), Same(), DEADLINE_S)  # type: ignore[arg-type]
        params = SamplingParams(max_new_tokens=24, seed=3)
        clean = engines.generate(PROMPTS, params)
        driver = psutil.Process(ray.get(actor.__ray_call__.remote(lambda _: os.getpid()), timeout=DEADLINE_S))
        own = driver.children(recursive=True)
        (worker,) = [process for process in own if "Worker_TP1" in " ".join([process.name(), *process.cmdline()])]
        worker.suspend()
        threading.Timer(1.0, worker.kill).start()
        again = engines.generate(PROMPTS, params)
        _, alive = psutil.wait_procs([driver, *own], timeout=120)
    finally:
        ray.shutdown()
    assert "starting engine 0 of 1 again: engine 0 of 1 failed in generate: " in capsys.readouterr().err
    assert [answer.token_ids for answer in again] == [answer.token_ids for answer in clean]
    for got, wanted in zip(again, clean, strict=True):
        assert got.log_probs == pytest.approx(wanted.log_probs, abs=1e-4)
    assert alive == []
