"""The launch scripts of the supervised commands run as they stand, with tiny stand-ins for models and data.

Flags after a script's name come last and win, so a run differs from the script only in the names of models, data and
folders, and in sizes.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from openrlhf.models.tiny import build_tokenizer
from tests.docs.shell import ROOT
from tests.recipes.helpers import column, free_port, launched, words, write_rows

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

FOLDER = ROOT / "examples/scripts"
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel], dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
    "mixtral": (MixtralConfig, MixtralForCausalLM, {"num_local_experts": 4, "sliding_window": None}),
}


def chat(answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "What is good?"}, {"role": "assistant", "content": answer}]


INSTRUCTIONS = [{"question": f"What is {i} + 1?", "response": f"It is {i + 1}."} for i in range(6)]
TEXTS = [{"text": f"Once upon a time there were {i} bears."} for i in range(6)]
PAIRS = [{"chosen": chat(f"{i} flowers"), "rejected": chat(f"{i} stones")} for i in range(6)]
LABELLED = [{"instruction": f"Say {i}.", "response": f"{i}" if i % 2 else "no", "score": i % 2} for i in range(6)]
STEPS = [{"input": f"{i} + 1 = {i + 1} ки so {i + 2} ки", "value": ["+", "-"]} for i in range(6)]


@dataclass(frozen=True)
class Case:
    """What stands in for a script's model and data."""

    rows: list[dict[str, Any]]
    family: str = "llama"
    gpus: int = 1
    steps: int = 2
    teacher: bool = False


CASES = {
    "train_sft_llama.sh": Case(INSTRUCTIONS),
    "train_sft_llama_tensor_parallelism.sh": Case(INSTRUCTIONS, gpus=2),
    "train_sft_mixtral_lora.sh": Case(INSTRUCTIONS, "mixtral"),
    "train_continue_pretrain_llama.sh": Case(TEXTS),
    "train_rm_llama.sh": Case(PAIRS),
    "train_prm_mistral.sh": Case(STEPS, "mistral"),
    "train_dpo_llama.sh": Case(PAIRS),
    "train_dpo_ring_llama.sh": Case(PAIRS, gpus=2),
    "train_kto_llama.sh": Case(LABELLED),
    "train_knowledge_distillation.sh": Case(INSTRUCTIONS, teacher=True),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny folder of each family, with a tokenizer in which ки, + and - are one token each."""
    folders = {}
    for name, (config, model, options) in FAMILIES.items():
        folder = tmp_path_factory.mktemp(name)
        tokenizer = build_tokenizer(folder, ["ки ки ки", "What is 1 + 1? It is 2."], vocab_size=280)
        tokenizer.add_tokens(["ки"])
        tokenizer.save_pretrained(folder)
        ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
        model(config(**SIZES, num_key_value_heads=2, vocab_size=len(tokenizer), **ids, **options)).save_pretrained(
            folder
        )
        folders[name] = folder
    return folders


@pytest.mark.parametrize("script", CASES)
def test_script_trains(script: str, models: dict[str, Path], tmp_path: Path) -> None:
    case = CASES[script]
    flags = {
        "pretrain": models[case.family],
        "dataset": write_rows(tmp_path / "rows.jsonl", case.rows),
        "train_batch_size": 3,
        "micro_train_batch_size": 1,
        "max_len": 64,
        "save_path": tmp_path / "model",
        "ckpt_path": tmp_path / "steps",
        **({"teacher_model": models[case.family]} if case.teacher else {}),
    }
    run_script(script, words(flags), case.gpus)
    assert len(column(tmp_path / "model", "loss")) == case.steps
    assert list((tmp_path / "model").glob("*.safetensors"))


def run_script(script: str, line: list[str], gpus: int) -> None:
    """A script of the folder, with the programs of this environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    launched(["bash", str(FOLDER / script), *line], PATH=path, GPUS=str(gpus), PORT=free_port())


def test_slurm_script_trains_on_two_machines(models: dict[str, Path], tmp_path: Path) -> None:
    """Slurm's own programs are stood in for: ``srun`` starts its program twice on this machine, as on two."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {
        "scontrol": "echo 127.0.0.1\n",
        "srun": 'shift\n"$@" & first=$!\n"$@"\nwait $first\n',
    }.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\nset -euo pipefail\n{text}", encoding="utf-8")
        (programs / name).chmod(0o755)
    flags = {
        "pretrain": models["llama"],
        "dataset": write_rows(tmp_path / "rows.jsonl", INSTRUCTIONS),
        "input_key": "question",
        "output_key": "response",
        "train_batch_size": 6,
        "micro_train_batch_size": 1,
        "max_epochs": 1,
        "max_len": 64,
        "save_path": tmp_path / "model",
    }
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    path = f"{programs}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = ["bash", str(FOLDER / "train_llama_slurm.sh"), "openrlhf.cli.train_sft", *words(flags)]
    launched(script, PATH=path, GPUS="1", PORT=free_port(), **job)
    assert len(column(tmp_path / "model", "loss")) == 1


# The two commands that users of OpenRLHF know by heart.
SFT = r"""deepspeed --module openrlhf.cli.train_sft \
   --max_len 4096 \
   --dataset Open-Orca/OpenOrca \
   --input_key question \
   --output_key response \
   --input_template $'User: {}\nAssistant: ' \
   --train_batch_size 256 \
   --micro_train_batch_size 2 \
   --max_samples 500000 \
   --pretrain meta-llama/Meta-Llama-3-8B \
   --save_path ./checkpoint/llama3-8b-sft \
   --save_steps -1 \
   --logging_steps 1 \
   --eval_steps -1 \
   --zero_stage 2 \
   --max_epochs 1 \
   --packing_samples \
   --bf16 \
   --flash_attn \
   --learning_rate 5e-6 \
   --gradient_checkpointing \
   --use_wandb {wandb_token}"""
RM = r"""deepspeed --module openrlhf.cli.train_rm \
   --save_path ./checkpoint/llama3-8b-rm \
   --save_steps -1 \
   --logging_steps 1 \
   --eval_steps -1 \
   --train_batch_size 256 \
   --micro_train_batch_size 1 \
   --pretrain OpenRLHF/Llama-3-8b-sft-mixture \
   --bf16 \
   --max_epochs 1 \
   --max_len 8192 \
   --zero_stage 3 \
   --learning_rate 9e-6 \
   --dataset OpenRLHF/preference_dataset_mixture2_and_safe_pku \
   --apply_chat_template \
   --chosen_key chosen \
   --rejected_key rejected \
   --flash_attn \
   --packing_samples \
   --gradient_checkpointing \
   --use_wandb {wandb_token}"""


@pytest.mark.parametrize(("command", "rows"), [(SFT, INSTRUCTIONS), (RM, PAIRS)], ids=["sft", "rm"])
def test_well_known_command_trains(
    command: str, rows: list[dict[str, Any]], models: dict[str, Path], tmp_path: Path
) -> None:
    """As it is written, with names and sizes replaced; W&B keeps its files on this machine."""
    pytest.importorskip("wandb")
    flags = {
        "pretrain": models["llama"],
        "dataset": write_rows(tmp_path / "rows.jsonl", rows),
        "train_batch_size": 6,
        "save_path": tmp_path / "model",
    }
    line = command.replace("deepspeed ", f"deepspeed --master_port {free_port()} ", 1)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    launched(["bash", "-c", f'{line} "$@"', "bash", *words(flags)], PATH=path, WANDB_MODE="offline")
    assert len(column(tmp_path / "model", "loss")) == 1
    assert list((tmp_path / "model").glob("wandb/offline-run-*"))
