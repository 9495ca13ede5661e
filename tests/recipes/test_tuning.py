"""Flags that trade memory for time change no number; one that cannot work here says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from openrlhf.cli import train_sft
from tests.recipes.helpers import free_port, launched, metrics, run, words, write_rows

ROWS = [{"q": f"is {i} good? ", "a": "yes" + " sir" * (i % 3)} for i in range(7)]
TUNED = {
    "zero_stage": 3, "zpg": 2, "adam_offload": True, "overlap_comm": True, "grad_accum_dtype": "fp32",
    "gradient_checkpointing": True, "gradient_checkpointing_use_reentrant": True,
}  # fmt: skip


def torchrun(processes: int) -> list[str]:
    start = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    return [*start, f"--master-port={free_port()}", "-m", "openrlhf.cli.train_sft"]


@pytest.mark.slow
@pytest.mark.cluster
def test_tuning_changes_no_number(tiny_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    flags = {
        "pretrain": tiny_folder, "dataset": write_rows(tmp_path / "rows.jsonl", ROWS), "input_key": "q",
        "output_key": "a", "max_len": 64, "train_batch_size": 4, "micro_train_batch_size": 2, "learning_rate": 1e-3,
    }  # fmt: skip
    plain = run(train_sft.main, flags | {"save_path": tmp_path / "plain"})
    tuned = tmp_path / "tuned"
    launched([*torchrun(2), *words(flags | TUNED | {"save_path": tuned})])
    for a, b in zip(metrics(plain), metrics(tuned), strict=True):
        assert b == pytest.approx(a, rel=1e-5, abs=1e-6)
    torch.testing.assert_close(
        load_file(tuned / "model.safetensors"), load_file(plain / "model.safetensors"), rtol=0, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.skipif(torch.cuda.is_available(), reason="speaks of a machine without a GPU")
def test_deepcompile_without_a_gpu_is_one_sentence(tiny_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    flags = {
        "pretrain": tiny_folder, "dataset": write_rows(tmp_path / "rows.jsonl", ROWS), "input_key": "q",
        "output_key": "a", "deepcompile": True, "save_path": tmp_path / "out",
    }  # fmt: skip
    done = subprocess.run([*torchrun(1), *words(flags)], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode != 0
    assert "--deepcompile builds CUDA code: it needs an NVIDIA GPU" in done.stderr
