"""The RL command as a user of a Ray cluster starts it: ``ray start --head``, then ``ray job submit``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.ray_head import RAY, ray_head

pytest.importorskip("ray")
pytestmark = pytest.mark.cluster

REWARD = "def reward_func(queries, prompts, labels):\n    return [float(len(q) % 2) for q in queries]\n"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A Ray head of our own with its job server: (address, environment)."""
    with ray_head(tmp_path) as head:
        yield head


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
    runtime = {"working_dir": str(work), "setup_commands": ["exit 1"]}  # Ray ignores the second name
    command = [
        *(RAY, "job", "submit", f"--address={address}"),
        f"--runtime-env-json={json.dumps(runtime)}",
        *("--", sys.executable, "-m", "openrlhf.cli.train_ppo_ray"),
        *flags.split(),
    ]
    submitted = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert submitted.returncode == 0, submitted.stdout[-4000:] + submitted.stderr[-2000:]
    assert "step 1:" in submitted.stdout
    assert (out / "model.safetensors").is_file()
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["engine_log_prob_diff"] < 1e-4
