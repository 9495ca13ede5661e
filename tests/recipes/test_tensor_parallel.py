"""``--ds_tensor_parallel_size 2``: two processes share a model and give the numbers of one process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from openrlhf.cli import train_dpo, train_rm, train_sft
from openrlhf.models.tiny import build_model, build_tokenizer
from tests.conftest import TEXTS
from tests.recipes.helpers import free_port, launched, metrics, run, words, write_rows

MAINS = {"train_sft": train_sft.main, "train_rm": train_rm.main, "train_dpo": train_dpo.main}
PAIRS = [
    {"q": f"is {i} good? ", "chosen": "yes" + " sir" * (i % 3), "rejected": "no" + " way" * (i % 4)} for i in range(7)
]
COLUMNS: dict[str, dict[str, Any]] = {
    "train_sft": {"input_key": "q", "output_key": "chosen", "packing_samples": True},
    "train_rm": {"prompt_key": "q"},
    "train_dpo": {"prompt_key": "q", "zero_stage": 3},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two heads and two key-value heads: one for each process."""
    folder = tmp_path_factory.mktemp("two-heads")
    build_model(folder, len(build_tokenizer(folder, TEXTS, vocab_size=300)), heads=2, kv_heads=2)
    return folder


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("module", MAINS)
def test_two_processes_a_model_give_the_numbers_of_one(module: str, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    flags = {
        "pretrain": model, "dataset": write_rows(tmp_path / "rows.jsonl", PAIRS), "max_len": 64, "train_batch_size": 4,
        "micro_train_batch_size": 2, "max_epochs": 2, "learning_rate": 1e-3, "seed": 3, **COLUMNS[module],
    }  # fmt: skip
    alone = run(MAINS[module], flags | {"save_path": tmp_path / "alone"})
    shared = tmp_path / "shared"
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    launched(
        [*start, "-m", f"openrlhf.cli.{module}", *words(flags | {"save_path": shared, "ds_tensor_parallel_size": 2})]
    )
    for a, b in zip(metrics(alone), metrics(shared), strict=True):
        assert b == pytest.approx(a, rel=1e-5, abs=1e-6)
    expected = load_file(alone / "model.safetensors")
    saved = load_file(shared / "model.safetensors")
    torch.testing.assert_close(saved, expected, rtol=0, atol=1e-5)
    assert not torch.equal(saved["model.norm.weight"], load_file(model / "model.safetensors")["model.norm.weight"])
