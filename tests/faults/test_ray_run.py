"""A run on a Ray of its own, seen from outside: its ports, where its W&B key stands, and the death of Ray's head."""

from __future__ import annotations

import ipaddress
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from openrlhf.cli.train_ppo_ray import main
from tests.recipes.helpers import metrics, run, words, write_rows

pytest.importorskip("ray")
pytest.importorskip("vllm")
pytest.importorskip("deepspeed")
pytestmark = [pytest.mark.cluster, pytest.mark.slow]

# From the fourth step on it waits while the file is there.
REWARD = """
import pathlib, time
def reward_func(queries, prompts, labels):
    log, hold = pathlib.Path({log!r}), pathlib.Path({hold!r})
    while hold.exists() and log.exists() and log.read_bytes().count(b"\\n") >= 3:
        time.sleep(0.1)
    return [len(set(q)) / 20 for q in queries]
"""
CANARY = "c4n4ry" * 6 + "4567"


def wait_for(what: Callable[[], Any], process: psutil.Popen, shown: Path) -> None:
    until = time.monotonic() + 240
    while not what():
        if process.poll() is not None or time.monotonic() > until:
            with suppress(psutil.NoSuchProcess):
                process.kill()
            pytest.fail(f"the run ended with {process.wait(timeout=60)}:\n{shown.read_text()[-3000:]}")
        time.sleep(0.1)


def listening(tree: list[psutil.Process]) -> dict[str, str]:
    """Addresses that the processes listen on which others could reach, and who does."""
    found = {}
    for process in tree:
        with suppress(psutil.NoSuchProcess):
            for place in process.net_connections("inet"):
                if place.status == psutil.CONN_LISTEN and not is_loopback(place.laddr.ip):
                    found[f"{place.laddr.ip}:{place.laddr.port}"] = " ".join(process.cmdline())[:200]
    return found


def is_loopback(text: str) -> bool:
    address = ipaddress.ip_address(text)
    return ((isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped) or address).is_loopback


def holding(tree: list[psutil.Process], key: str) -> list[str]:
    """Who has the key on its command line or in the environment that it was given, besides W&B's own programs."""
    found = []
    for process in tree:
        with suppress(psutil.NoSuchProcess):
            line = " ".join(process.cmdline())
            if "/wandb/bin/" not in line and (key in line or key in process.environ().values()):
                found.append(line[:200])
    return found


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Short, since names of Unix sockets are."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.timeout(600)
def test_a_run_whose_ray_dies_goes_on_and_shows_nothing(
    tiny_folder: Path, tmp_path: Path, ray_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(ray_folder))
    monkeypatch.setenv("WANDB_MODE", "offline")
    log, shown, hold = tmp_path / "out" / "metrics.jsonl", tmp_path / "shown", tmp_path / "hold"
    hold.touch()
    (tmp_path / "reward.py").write_text(REWARD.format(log=str(log), hold=str(hold)))
    flags: dict[str, Any] = {
        "pretrain": tiny_folder, "remote_rm_url": tmp_path / "reward.py", "advantage_estimator": "rloo",
        "prompt_data": write_rows(tmp_path / "p.jsonl", [{"input": f"What is {i} + {i}?"} for i in range(12)]),
        "actor_num_gpus_per_node": 2, "vllm_num_engines": 1, "init_kl_coef": 0, "rollout_batch_size": 2,
        "n_samples_per_prompt": 2, "train_batch_size": 4, "micro_train_batch_size": 2, "prompt_max_len": 32,
        "generate_max_len": 8, "actor_learning_rate": 1e-3, "save_steps": 2, "deadline": 240,
        "use_wandb": CANARY, "save_path": tmp_path / "out", "ckpt_path": tmp_path / "ckpt",
    }  # fmt: skip
    with shown.open("w") as file:
        process = psutil.Popen(
            [sys.executable, "-m", "openrlhf.cli.train_ppo_ray", *words(flags)], stdout=file, stderr=subprocess.STDOUT
        )
    try:
        wait_for(lambda: log.exists() and log.read_bytes().count(b"\n") >= 3, process, shown)
        workers = process.children(recursive=True)
        open_to_others, with_key = listening([process, *workers]), holding(workers, CANARY)
        (head,) = [child for child in workers if child.name().startswith("gcs_server")]
        head.kill()
        code = process.wait(timeout=240)
    finally:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    assert open_to_others == {}
    assert with_key == []
    assert code != 0
    assert "Ray's head, at " in shown.read_text() and "goes on from " in shown.read_text()
    files = [path for root in (tmp_path, ray_folder) for path in root.rglob("*") if path.is_file()]
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []
    _, alive = psutil.wait_procs(workers, timeout=120)
    assert [worker for worker in alive if worker.status() != psutil.STATUS_ZOMBIE] == []
    hold.unlink()
    before = metrics(tmp_path / "out")
    monkeypatch.setenv("WANDB_API_KEY", "unused")
    run(main, flags | {"load_checkpoint": True, "use_wandb": "true"})
    after = metrics(tmp_path / "out")
    assert [row["step"] for row in after] == list(range(1, 7))
    assert after[: len(before)] == before
