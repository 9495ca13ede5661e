"""The RL command as a user of a Ray cluster starts it: ``ray start --head``, then ``ray job submit``."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray")
pytestmark = pytest.mark.cluster

RAY = str(Path(sys.executable).with_name("ray"))
REWARD = "def reward_func(queries, prompts, labels):\n    return [float(len(q) % 2) for q in queries]\n"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A Ray head of our own with its job server: (address, environment)."""
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(16))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback only
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": tempfile.mkdtemp(prefix="ray"),  # short: Unix sockets lie in there
    }
    port, dashboard, agent = free_port(), free_port(), free_port()
    command = [
        *(RAY, "start", "--head", "--block", "--num-cpus=2", f"--port={port}"),
        *(f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
    ]
    log = (tmp_path / "head.log").open("w")
    head = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        wait_for(dashboard, head)
        yield f"http://127.0.0.1:{dashboard}", environment
    finally:
        end(head)
        log.close()
        shutil.rmtree(environment["RAY_TMPDIR"], ignore_errors=True)


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 90
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise TimeoutError("the Ray head's job server did not come up within 90 s")


def end(head: subprocess.Popen[bytes]) -> None:
    """The head ends its children when it is asked to end."""
    head.terminate()
    try:
        head.wait(timeout=30)
    except subprocess.TimeoutExpired:
        head.kill()
        head.wait(timeout=30)


@pytest.mark.timeout(400)
def test_ray_job_submit_trains_and_saves(
    cluster: tuple[str, dict[str, str]], tiny_folder: Path, tmp_path: Path
) -> None:
    address, environment = cluster
    work = tmp_path / "work"
    work.mkdir()
    (work / "reward.py").write_text(REWARD)
    (work / "prompts.jsonl").write_text("".join(json.dumps({"input": f"What is {i} + 3?"}) + "\n" for i in range(4)))
    out = tmp_path / "out"
    flags = (
        f"--pretrain {tiny_folder} --remote_rm_url reward.py --prompt_data prompts.jsonl --save_path {out} "
        "--actor_num_gpus_per_node 1 --vllm_num_engines 1 --advantage_estimator reinforce --init_kl_coef 0 "
        "--rollout_batch_size 4 --train_batch_size 4 --prompt_max_len 32 --generate_max_len 8"
    )
    command = [
        *(RAY, "job", "submit", f"--address={address}"),
        f"--runtime-env-json={json.dumps({'working_dir': str(work)})}",
        *("--", sys.executable, "-m", "openrlhf.cli.train_ppo_ray"),
        *flags.split(),
    ]
    until = time.monotonic() + 90
    while True:
        submitted = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        # The job server answers before its agent, which starts jobs, is up.
        if "No available agent" not in submitted.stderr or time.monotonic() > until:
            break
        time.sleep(3)
    assert submitted.returncode == 0, submitted.stdout[-4000:] + submitted.stderr[-2000:]
    assert "step 1:" in submitted.stdout
    assert (out / "model.safetensors").is_file()
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["engine_log_prob_diff"] < 1e-4
