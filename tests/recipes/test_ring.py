"""Every supervised command on a ring of two ranks ends where one process does.

Process starts are the cost here: two ranks start once and run all commands one after the other.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file

from tests.recipes.helpers import free_port, metrics, run, words, write_rows

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(400)]

# Seven rows for mini-batches of four: the last of an epoch is smaller.
ROWS = [{"q": f"is {i} good? ", "a": "yes" + " sir" * (i % 3), "bad": "no" + " way" * (i % 4), "good": i % 2,
         "steps": "ab#" * (i % 3) + "ba#", "labels": ["+"] * (i % 3) + ["-"]} for i in range(7)]  # fmt: skip
PAIRS = {"prompt_key": "q", "chosen_key": "a", "rejected_key": "bad"}
ANSWERS = {"input_key": "q", "output_key": "a"}
COMMANDS: dict[str, dict[str, Any]] = {
    "train_sft": {**ANSWERS, "zero_stage": 2, "gradient_checkpointing": True},
    "train_rm": {**PAIRS, "zero_stage": 3},
    "train_dpo": {**PAIRS, "zero_stage": 3, "nll_loss_coef": 0.1},
    "train_dpo with adapters": {**PAIRS, "zero_stage": 2, "lora_rank": 4, "gradient_checkpointing": True},
    "train_kto": {**ANSWERS, "label_key": "good", "zero_stage": 1},
    "train_kd": {**ANSWERS, "zero_stage": 3},
    "train_prm": {"input_key": "steps", "label_key": "labels", "placeholder_token": "#", "reward_tokens": ("+", "-"),
                  "zero_stage": 0},
}  # fmt: skip


def main_of(command: str) -> Callable[[list[str]], None]:
    main: Callable[[list[str]], None] = import_module(f"openrlhf.cli.{command.split()[0]}").main
    return main


def run_rank(rank: int, port: str, lines: dict[str, list[str]]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "DS_ACCELERATOR": "cpu"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for command, line in lines.items():
        main_of(command)(line)


@pytest.fixture(scope="module")
def folders(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``alone/train_x`` and ``ring/train_x`` for each command."""
    pytest.importorskip("deepspeed")
    root = tmp_path_factory.mktemp("ring")
    common = {
        "pretrain": tiny_folder, "dataset": write_rows(root / "rows.jsonl", ROWS), "max_len": 64,
        "eval_dataset": root / "rows.jsonl", "train_batch_size": 4, "micro_train_batch_size": 2, "max_epochs": 2,
        "learning_rate": 1e-3, "lr_warmup_ratio": 0,
    }  # fmt: skip
    flags = {command: {**common, **own} for command, own in COMMANDS.items()}
    flags["train_kd"]["teacher_model"] = root / "alone" / "train_sft"
    for command, own in flags.items():
        run(main_of(command), own | {"save_path": root / "alone" / command})
    ring = {"ring_attn_size": 2, "packing_samples": True}
    lines = {name: words(own | ring | {"save_path": root / "ring" / name}) for name, own in flags.items()}
    mp.spawn(run_rank, (free_port(), lines), 2)
    return root


@pytest.mark.parametrize("command", COMMANDS)
def test_a_ring_of_two_ends_where_one_process_does(folders: Path, tiny_folder: Path, command: str) -> None:
    alone, ring = (metrics(folders / name / command) for name in ("alone", "ring"))
    for a, b in zip(alone, ring, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)
    file = "adapter_model.safetensors" if "adapters" in command else "model.safetensors"
    start = load_file(tiny_folder / "model.safetensors")
    expected, got = (load_file(folders / name / command / file) for name in ("alone", "ring"))
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        from_where = start.get(name, torch.zeros_like(value))
        assert float((got[name] - value).norm()) < 0.02 * float((value - from_where).norm()), name
