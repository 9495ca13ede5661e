"""Runs that lose a process and start again by themselves, by their command in a process of its own; and whether others
can read their secrets meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.recipes.helpers import metrics, words, write_rows

CANARY = "c4n4ry" * 6 + "0123"
WANDB = """
from types import SimpleNamespace
import os
from pathlib import Path

def init(**given):
    Path(os.environ["SEEN"], "key").write_text(os.environ["WANDB_API_KEY"])
    return SimpleNamespace(log=lambda *args, **kwargs: None, finish=lambda: None)
"""
# At the third call of the first life it does the harm that HARM names. At each call it notes who shows the canary.
REWARD = """
import os, signal, time
from pathlib import Path

seen = Path(os.environ["SEEN"])

def processes():
    for folder in Path("/proc").iterdir():
        try:
            environment = (folder / "environ").read_bytes().decode(errors="replace")
            if folder.name.isdigit() and os.environ["SEEN"] in environment:
                line = (folder / "cmdline").read_bytes().replace(bytes(1), b" ").decode()
                yield int(folder.name), environment, line
        except OSError:
            pass

def harm():
    if os.environ["HARM"] == "driver":
        os.kill(os.getpid(), signal.SIGKILL)
    (victim, *_) = [pid for pid, _, line in processes() if "ActorWorker" in line]
    os.kill(victim, signal.SIGKILL)
    time.sleep(100)

def reward_func(queries, prompts, labels):
    with (seen / "calls").open("a") as file:
        file.write("x")
    key = (seen / "key").read_text()
    with (seen / "processes").open("a") as file:
        for _, environment, line in processes():
            print(key in line, key in environment, line, file=file)
    if (seen / "calls").read_text() == "xxx":
        harm()
    return [len(set(q)) / 20 for q in queries]
"""


def survive(tiny_folder: Path, folder: Path, harm: str, **others: Any) -> str:
    """What a run says that is harmed, and starts again."""
    (folder / "reward.py").write_text(REWARD)
    (folder / "seen").mkdir()
    (folder / "stub").mkdir()
    (folder / "stub" / "wandb.py").write_text(WANDB)
    flags: dict[str, Any] = {
        "pretrain": tiny_folder, "remote_rm_url": folder / "reward.py", "advantage_estimator": "rloo",
        "prompt_data": write_rows(folder / "p.jsonl", [{"input": f"What is {i} + {i}?"} for i in range(8)]),
        "init_kl_coef": 0, "rollout_batch_size": 2, "n_samples_per_prompt": 2, "train_batch_size": 4,
        "micro_train_batch_size": 2, "prompt_max_len": 32, "generate_max_len": 12, "actor_learning_rate": 1e-3,
        "save_steps": 1, "max_restarts": 1, "use_wandb": CANARY, "save_path": folder / "out",
        "ckpt_path": folder / "ckpt", **others,
    }  # fmt: skip
    paths = os.pathsep.join([str(folder / "stub"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "openrlhf.cli.train_ppo_ray", *words(flags)],
        env={**os.environ, "PYTHONPATH": paths, "SEEN": str(folder / "seen"), "HARM": harm},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    assert (folder / "seen" / "key").read_text() == CANARY
    assert [line["step"] for line in metrics(folder / "out")] == [1, 2, 3, 4]
    return done.stdout


def seen(folder: Path) -> list[str]:
    """A line of each process of the run that the reward function saw: whether it shows the canary in its command line,
    whether in its environment, and the line."""
    return sorted(set((folder / "seen" / "processes").read_text().splitlines()))


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_killed_driver_starts_again_from_its_checkpoint(tiny_folder: Path, tmp_path: Path) -> None:
    said = survive(tiny_folder, tmp_path, "driver", local=True)
    assert "the run was ended by SIGKILL; restart 1 of --max_restarts 1" in said
    assert "going on after step 2 from " in said
    assert {line.split()[0] for line in seen(tmp_path)} == {"False"}


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(500)
def test_r05_a_run_that_loses_an_idle_rank_says_so_and_starts_again(tiny_folder: Path, tmp_path: Path) -> None:
    """While a reward is waited for, which would take longer than all the rest. The actor samples by itself: without
    engines a start is quicker."""
    for package in ("ray", "deepspeed"):
        pytest.importorskip(package)
    said = survive(tiny_folder, tmp_path, "rank", actor_num_gpus_per_node=2, vllm_num_engines=0)
    lost = next(
        line for line in said.splitlines() if line.startswith("in the phase rollout after step 2: actor worker")
    )
    assert " of 2 died: " in lost and "The same command with --load_checkpoint goes on from " in lost
    assert "the run ended with code 3; restart 1 of --max_restarts 1" in said
    assert "going on after step 2 from " in said
    processes = seen(tmp_path)
    assert any("raylet" in line for line in processes) and any("ActorWorker" in line for line in processes)
    assert {line.split()[0] for line in processes} == {"False"}
    assert all("-m openrlhf.cli.train_ppo_ray" in line for line in processes if line.split()[1] == "True")


# In its first life the second of two ranks dies when step 3 is logged; the first waits for it in step 4.
DIES = """
import os, signal, sys
from openrlhf.cli.train_sft import main
from openrlhf.training.log import RunLog

step = RunLog.step

def dying(self, number, values):
    step(self, number, values)
    if number == 3 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)

RunLog.step = dying
main(sys.argv[1:])
"""


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(500)
def test_r06_the_launcher_starts_a_supervised_run_again_that_lost_a_rank(tiny_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    (tmp_path / "dies.py").write_text(DIES)
    flags = {
        "pretrain": tiny_folder, "input_key": "q", "output_key": "a",
        "dataset": write_rows(tmp_path / "rows.jsonl", [{"q": f"{i}", "a": "b"} for i in range(12)]),
        "input_template": "{}", "max_len": 32, "max_epochs": 1, "train_batch_size": 2,
        "micro_train_batch_size": 1, "save_steps": 1, "load_checkpoint": True, "save_path": tmp_path / "out",
        "ckpt_path": tmp_path / "ckpt",
    }  # fmt: skip
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--max-restarts", "1"]
    done = subprocess.run(
        [sys.executable, *start, str(tmp_path / "dies.py"), *words(flags)],
        env={**os.environ, "DS_ACCELERATOR": "cpu"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    assert "(exitcode: -9) local_rank: 1" in done.stdout and "going on after step 2 from " in done.stdout, done.stdout[
        -5000:
    ]
    assert [line["step"] for line in metrics(tmp_path / "out")] == [1, 2, 3, 4, 5, 6]
