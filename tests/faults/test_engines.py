"""Real vLLM engines that die or hang are replaced, and the numbers of the run are those of one without that."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from openrlhf.cli.train_ppo_ray import main
from tests.recipes.helpers import metrics, run, write_rows

pytest.importorskip("ray")
pytest.importorskip("vllm")
pytest.importorskip("deepspeed")
pytestmark = [pytest.mark.cluster, pytest.mark.slow]

# Row → engine, the call to it, and which such call of the run. A process that is stopped when it is asked and killed a
# moment later was in the middle of its answer. Faults come in twos, as engines that start at once take less time.
FAULTS = {
    "R07": (0, "generate", 2),  # dies idle
    "R08": (1, "generate", 2),  # in the middle; with R07 all of them are dead (R11)
    "R09": (1, "receive_weights", 3),  # the first was when these engines came
    "R12": (0, "receive_weights", 3),  # stopped for good
}


def process_of(actor: Any) -> int:
    import ray

    return int(ray.get(actor.__ray_call__.remote(lambda _: os.getpid()), timeout=120))


@dataclass
class Injector:
    """In place of ``ask``: counts what each engine is asked for."""

    ask: Callable[..., Any]
    engines: list[Any] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)
    counts: dict[tuple[int, str], int] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    killers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2))

    def __call__(self, actor: Any, verb: str, *args: Any) -> Any:
        if actor not in self.engines:
            return self.ask(actor, verb, *args)
        place = self.engines.index(actor)
        self.counts[place, verb] = count = self.counts.get((place, verb), 0) + 1
        row = next((row for row, fault in FAULTS.items() if fault == (place, verb, count)), None)
        if row is None or row in self.done:
            return self.ask(actor, verb, *args)
        self.done.add(row)
        pid = process_of(actor)
        if row == "R07":
            os.kill(pid, signal.SIGKILL)
            return self.ask(actor, verb, *args)
        os.kill(pid, signal.SIGSTOP)
        if row != "R12":
            self.killers.submit(_kill_later, pid)
        return self.ask(actor, verb, *args)


def _kill_later(pid: int) -> None:
    time.sleep(1)
    os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The folder of a run and of the same with faults, and what the latter did."""
    from openrlhf.cluster import engines, watch, weight_sync

    folder = tmp_path_factory.mktemp("engines")
    (folder / "reward.py").write_text(
        "def reward_func(queries, prompts, labels):\n    return [len(set(q)) / 20 for q in queries]\n"
    )
    flags: dict[str, Any] = {
        "pretrain": tiny_folder, "remote_rm_url": folder / "reward.py",
        "prompt_data": write_rows(folder / "p.jsonl", [{"input": f"What is {i} + {i}?"} for i in range(12)]),
        "advantage_estimator": "rloo", "init_kl_coef": 0, "actor_num_gpus_per_node": 1, "vllm_num_engines": 2,
        "rollout_batch_size": 4, "n_samples_per_prompt": 2, "train_batch_size": 8, "micro_train_batch_size": 4,
        "prompt_max_len": 32, "generate_max_len": 12, "actor_learning_rate": 1e-3,
    }  # fmt: skip
    began = time.monotonic()
    run(main, flags | {"save_path": folder / "clean", "vllm_num_engines": 1})
    print(f"clean: {time.monotonic() - began:.0f} s")
    with pytest.MonkeyPatch.context() as patch:
        injector = Injector(engines.ask)
        original = engines.Engines.__init__

        def watched(self: Any, handles: list[Any], *args: Any, **kwargs: Any) -> None:
            injector.engines = handles
            original(self, handles, *args, **kwargs)

        patch.setattr(engines.Engines, "__init__", watched)
        patch.setattr(watch, "SILENCE_S", 20.0)
        patch.setattr(engines, "ask", injector)
        patch.setattr(weight_sync, "ask", injector)
        began = time.monotonic()
        run(main, flags | {"save_path": folder / "faulty"})
        print(f"faulty: {time.monotonic() - began:.0f} s")
    return {"clean": folder / "clean", "faulty": folder / "faulty", "done": injector.done}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("row", [*FAULTS, "R11"])
def test_an_engine_that_dies_is_replaced(row: str, runs: dict[str, Any]) -> None:
    assert runs["done"] >= ({"R07", "R08"} if row == "R11" else {row})
    assert metrics(runs["faulty"]) == metrics(runs["clean"])
    names = [folder / "model.safetensors" for folder in (runs["clean"], runs["faulty"])]
    assert names[0].read_bytes() == names[1].read_bytes()
