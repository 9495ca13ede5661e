"""The RL launch scripts run as they stand, as jobs of one Ray cluster, with tiny stand-ins for models and data.

Flags after a script's name come last and win, so a run differs from the script only in the names of models, data and
folders, and in sizes.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from openrlhf.models.tiny import build_tokenizer
from tests.cluster.ray_head import RAY, ray_head
from tests.docs.shell import ROOT
from tests.recipes.helpers import metrics, words, write_rows

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
        """Run a program in ``folder``; what it printed. It must end well."""
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


NO_CRITIC = Case(shows=(), lacks=("critic_loss",))
GROUPS = Case(shows=("kl_loss",), lacks=("critic_loss",))
CASES = {
    "train_ppo_llama_ray.sh": Case(),
    "train_ppo_llama_ray_hybrid_engine.sh": Case(),
    "train_ppo_llama_ray_70b.sh": Case(),
    "train_ppo_llama_ray_ring.sh": Case(workers=2),
    "train_ppo_llama_ray_tensor_parallelism.sh": Case(workers=2),
    "train_ppo_llama_with_reward_fn.sh": Case(reward="file"),
    "train_reinforce_llama_ray.sh": NO_CRITIC,
    "train_reinforce_llama_ray_hybrid_engine.sh": NO_CRITIC,
    "train_reinforce_baseline_llama_ray_hybrid_engine.sh": GROUPS,
    "train_grpo_llama_ray.sh": GROUPS,
    "train_grpo_ray_hybrid_engine.sh": Case(reward="file", shows=("kl_loss",), lacks=("critic_loss",)),
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
    out = cluster.run(["bash", f"examples/scripts/{script}", *words(stand_ins(case, models, tmp_path))], tmp_path)
    if "--no-wait" in (SCRIPTS / script).read_text(encoding="utf-8"):
        follow(cluster, out, tmp_path)
    has_trained(tmp_path, case.shows, case.lacks)


def follow(cluster: Cluster, out: str, folder: Path) -> None:
    """Wait until the job that ``out`` tells of has ended well."""
    job = re.search(r"raysubmit_\w+", out)
    assert job is not None
    server = f"--address={cluster.address}"
    log = cluster.run([RAY, "job", "logs", server, "--follow", job[0]], folder)
    assert "SUCCEEDED" in cluster.run([RAY, "job", "status", server, job[0]], folder).upper(), log[-3000:]
