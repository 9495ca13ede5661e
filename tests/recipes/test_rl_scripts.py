"""RL launch scripts run as they stand, as jobs of one Ray cluster, with tiny stand-ins for models and data.

Flags after a script's name come last and win, so a run differs from the script only in the names of models, data and
folders, and in sizes.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from openrlhf.models.tiny import build_tokenizer
from tests.cluster.ray_head import RAY, loopback, ray_head
from tests.docs.shell import ROOT
from tests.recipes.helpers import free_port, metrics, words, write_rows

for package in ("ray", "vllm", "deepspeed", "wandb"):
    pytest.importorskip(package)
pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(400)]

SCRIPTS = ROOT / "examples/scripts"
ROLES = ("actor", "critic", "ref", "reward")
ROWS = [
    {"context_messages": [{"role": "user", "content": text}], "question": text, "final_answer": "2"}
    for text in ("1 + 1?", "4 - 2?", "2 * 1?", "6 / 3?")
]
SIZES = {
    "vllm_num_engines": 1,
    "vllm_tensor_parallel_size": 1,
    "rollout_batch_size": 2,
    "micro_rollout_batch_size": 2,
    "n_samples_per_prompt": 2,
    "train_batch_size": 4,
    "micro_train_batch_size": 2,
    "prompt_max_len": 64,
    "generate_max_len": 8,
}


@dataclass(frozen=True)
class Models:
    policy: Path
    reward: Path


@dataclass(frozen=True)
class Cluster:
    """A running Ray head: the address of its job server, and the environment in which its programs run."""

    address: str
    environment: dict[str, str]

    def run(self, command: list[str], folder: Path) -> str:
        """Run a program in ``folder``, which must end well, and return what it prints."""
        done = subprocess.run(
            command, env=self.environment | {"ADDRESS": self.address}, cwd=folder, timeout=380,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-6000:]
        return done.stdout


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with ray_head(tmp_path_factory.mktemp("ray"), WANDB_MODE="offline") as (address, environment):
        yield Cluster(address, environment)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A Llama with two heads of 32, and a reward model of the same family with stored statistics."""
    models = Models(tmp_path_factory.mktemp("policy"), tmp_path_factory.mktemp("reward"))
    tokenizer = build_tokenizer(models.policy, ["1 + 1? It is 2."], vocab_size=280)
    AutoTokenizer.from_pretrained(models.policy).save_pretrained(models.reward)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(models.policy)
    config.num_labels, config.mean, config.std = 1, 0.0, 0.5
    LlamaForSequenceClassification(config).save_pretrained(models.reward)
    return models


@dataclass(frozen=True)
class Case:
    """What a script's run is given and must show: the source of its reward, the workers of a role, metrics."""

    reward: str = "reward_pretrain"
    workers: int = 1
    shows: tuple[str, ...] = ("critic_loss",)
    lacks: tuple[str, ...] = ()


GROUPS = Case(shows=("kl_coef",), lacks=("critic_loss",))
CASES = {
    "train_ppo_llama_ray.sh": Case(),
    "train_ppo_llama_ray_hybrid_engine.sh": Case(),
    "train_ppo_llama_ray_70b.sh": Case(),
    "train_ppo_llama_ray_ring.sh": Case(workers=2),
    "train_ppo_llama_ray_tensor_parallelism.sh": Case(workers=2),
    "train_ppo_llama_with_reward_fn.sh": Case(reward="file"),
    "train_reinforce_baseline_llama_ray_hybrid_engine.sh": GROUPS,
    "train_grpo_llama_ray.sh": GROUPS,
    "train_grpo_ray_hybrid_engine.sh": Case(reward="file", shows=("kl_coef",), lacks=("critic_loss",)),
    "train_reinforce_llama_ray.sh": GROUPS,
    "train_reinforce_llama_ray_hybrid_engine.sh": GROUPS,
}


def stand_ins(case: Case, models: Models, folder: Path) -> dict[str, Any]:
    return {
        "pretrain": models.policy,
        "prompt_data": write_rows(folder / "prompts.jsonl", ROWS),
        "save_path": folder / "model",
        "ckpt_path": folder / "steps",
        **({"reward_pretrain": models.reward} if case.reward == "reward_pretrain" else {}),
        **SIZES,
        **{f"{role}_num_nodes": 1 for role in ROLES},
        **{f"{role}_num_gpus_per_node": case.workers for role in ROLES},
    }


def has_trained(folder: Path, shows: tuple[str, ...] = (), lacks: tuple[str, ...] = ()) -> None:
    """Two steps, the second with weights that the engines took from the first; and a whole model."""
    steps = metrics(folder / "model")
    assert [step["weight_version"] for step in steps] == [0, 1]
    for step in steps:
        assert all(math.isfinite(value) for value in step.values())
        assert step["engine_log_prob_diff"] < 0.1  # of bfloat16
        assert set(shows) <= step.keys() and not set(lacks) & step.keys()
    assert list((folder / "model").glob("*.safetensors"))


@pytest.mark.parametrize("script", CASES)
def test_script_trains(script: str, cluster: Cluster, models: Models, tmp_path: Path) -> None:
    case = CASES[script]
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    said = cluster.run(["bash", f"examples/scripts/{script}", *words(stand_ins(case, models, tmp_path))], tmp_path)
    if "--no-wait" in (SCRIPTS / script).read_text():  # the job is accepted, and goes on by itself
        (job,) = set(re.findall(r"raysubmit_\w+", said))
        cluster.run([RAY, "job", "logs", f"--address={cluster.address}", "--follow", job], tmp_path)
    has_trained(tmp_path, case.shows, case.lacks)


def test_every_script_of_rl_is_run() -> None:
    others = {"train_ppo_llama_with_remote_rm.sh", "train_ppo_llama_ray_slurm.sh"}  # by tests of their own, below
    found = {path.name for path in SCRIPTS.glob("*.sh") if "train_ppo_ray" in path.read_text()}
    assert found == CASES.keys() | others


def test_script_trains_on_the_rewards_of_a_server(cluster: Cluster, models: Models, tmp_path: Path) -> None:
    """Which the script beside it starts."""
    pytest.importorskip("starlette")
    port = free_port()
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(
            ["bash", str(SCRIPTS / "serve_remote_rm.sh"), str(models.reward)],
            env=cluster.environment | {"PORT": port}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        flags = stand_ins(Case(reward="server"), models, tmp_path) | {
            "critic_pretrain": models.reward,
            "remote_rm_url": f"http://127.0.0.1:{port}/get_reward",
        }
        cluster.run(["bash", str(SCRIPTS / "train_ppo_llama_with_remote_rm.sh"), *words(flags)], tmp_path)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)
    has_trained(tmp_path, shows=("critic_loss",))


SLURM = {
    "scontrol": "echo 127.0.0.1\n",
    "srun": """
while [[ $1 == --* ]]; do shift; done
if [[ "$1" == ray ]]; then set -- "$@" --dashboard-port="$DASHBOARD" --dashboard-agent-listen-port="$AGENT"; fi
exec "$@"
""",
}


def test_slurm_script_starts_ray_and_trains(models: Models, tmp_path: Path) -> None:
    """Slurm's own programs are stood in for: ``srun`` starts its program on this machine. Ray has no second node on
    loopback: what further machines are told to start is read by the tests of the documentation."""
    environment = loopback(tmp_path / "token")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in SLURM.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\nset -euo pipefail\n{text}", encoding="utf-8")
        (programs / name).chmod(0o755)
    environment |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node1", "SLURM_JOB_NUM_NODES": "1"}
    environment |= {"PORT": free_port(), "DASHBOARD": free_port(), "AGENT": free_port()}
    environment["PATH"] = f"{programs}{os.pathsep}{environment['PATH']}"
    script = ["bash", str(SCRIPTS / "train_ppo_llama_ray_slurm.sh"), *words(stand_ins(Case(), models, tmp_path))]
    try:
        Cluster("", environment).run(script, tmp_path)
    finally:
        shutil.rmtree(environment["RAY_TMPDIR"], ignore_errors=True)
    has_trained(tmp_path, shows=("critic_loss",))
    assert not list(tmp_path.glob(".ray-token-*"))


# The command that users of OpenRLHF know by heart.
PPO = r"""ray job submit --address="http://127.0.0.1:8265" \
  --runtime-env-json='{"working_dir": "/openrlhf"}' \
  -- python3 -m openrlhf.cli.train_ppo_ray \
  --ref_num_nodes 1 \
  --ref_num_gpus_per_node 8 \
  --reward_num_nodes 1 \
  --reward_num_gpus_per_node 8 \
  --critic_num_nodes 1 \
  --critic_num_gpus_per_node 8 \
  --actor_num_nodes 1 \
  --actor_num_gpus_per_node 8 \
  --vllm_num_engines 4 \
  --vllm_tensor_parallel_size 2 \
  --colocate_all_models \
  --vllm_gpu_memory_utilization 0.5 \
  --pretrain OpenRLHF/Llama-3-8b-sft-mixture \
  --reward_pretrain OpenRLHF/Llama-3-8b-rm-700k \
  --save_path /openrlhf/examples/test_scripts/final/llama3-8b-rlhf \
  --ckpt_path /openrlhf/examples/test_scripts/ckpt/llama3-8b-rlhf \
  --save_hf_ckpt \
  --micro_train_batch_size 8 \
  --train_batch_size 128 \
  --micro_rollout_batch_size 16 \
  --rollout_batch_size 1024 \
  --n_samples_per_prompt 1 \
  --max_epochs 1 \
  --prompt_max_len 1024 \
  --max_samples 100000 \
  --generate_max_len 1024 \
  --zero_stage 3 \
  --bf16 \
  --actor_learning_rate 5e-7 \
  --critic_learning_rate 9e-6 \
  --init_kl_coef 0.01 \
  --prompt_data OpenRLHF/prompt-collection-v0.1 \
  --input_key context_messages \
  --apply_chat_template \
  --normalize_reward \
  --gradient_checkpointing \
  --packing_samples \
  --vllm_sync_backend nccl \
  --enforce_eager \
  --vllm_enable_sleep \
  --deepspeed_enable_sleep \
  --use_wandb {wandb_token}"""


def test_well_known_command_trains(cluster: Cluster, models: Models, tmp_path: Path) -> None:
    """As it is written, with names and sizes replaced; W&B keeps its files on this machine."""
    (tmp_path / "work").mkdir()
    line = PPO.replace("http://127.0.0.1:8265", cluster.address).replace('"/openrlhf"', f'"{tmp_path}/work"')
    flags = words(stand_ins(Case(), models, tmp_path))
    cluster.run(["bash", "-c", f'{line} "$@"', "bash", *flags], tmp_path)
    has_trained(tmp_path, shows=("critic_loss",))
    assert list((tmp_path / "model").glob("wandb/offline-run-*"))
