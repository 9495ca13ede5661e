"""``openrlhf kto`` from a file of labelled answers to a folder that Transformers loads."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from openrlhf.cli import train_kto
from tests.recipes.helpers import column, metrics, run, words, write_rows

# Yes is desirable, whatever was asked: a rule that a tiny model finds.
ROWS = [
    {"q": f"is {i} good? ", "a": ("yes" if i % 2 else "no") + " sir" * (i % 3), "good": bool(i % 2)} for i in range(8)
]


@pytest.fixture
def flags(tiny_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """Eight answers, two steps an epoch."""
    return {
        "pretrain": tiny_folder, "dataset": write_rows(tmp_path / "rows.jsonl", ROWS), "input_key": "q",
        "output_key": "a", "label_key": "good", "beta": 0.5, "max_len": 64, "train_batch_size": 4,
        "micro_train_batch_size": 2, "max_epochs": 2, "learning_rate": 1e-3, "save_path": tmp_path / "out",
    }  # fmt: skip


def answer_log_probs(folder: Path) -> list[float]:
    """Σ log π of each answer, by Transformers alone."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    sums = []
    for row in ROWS:
        prompt = tokenizer(f"User: {row['q']}\nAssistant: ", add_special_tokens=False)["input_ids"]
        answer = tokenizer(row["a"], add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            scores = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        sums.append(float(sum(scores[len(prompt) + i - 1, token] for i, token in enumerate(answer))))
    return sums


def test_labels_are_learned(flags: dict[str, Any], tiny_folder: Path) -> None:
    folder = run(train_kto.main, flags | {"max_epochs": 10, "eval_dataset": flags["dataset"]})
    assert column(folder, "accuracy")[-1] == column(folder, "eval_accuracy")[-1] == 1.0
    margin, loss = column(folder, "label_margin"), column(folder, "loss")
    assert margin[0] == column(folder, "accuracy")[0] == 0.0  # the policy starts at its reference
    assert loss[0] == 0.5
    assert margin[-1] > 0.5 and loss[-1] < 0.4
    assert min(column(folder, "kl_baseline")) >= 0

    before, after = answer_log_probs(tiny_folder), answer_log_probs(folder)
    rewards = [b - a for a, b in zip(before, after, strict=True)]
    assert min(r for r, row in zip(rewards, ROWS, strict=True) if row["good"]) > max(
        r for r, row in zip(rewards, ROWS, strict=True) if not row["good"]
    )


def test_packing_micro_batches_and_recomputation_are_matters_of_speed(flags: dict[str, Any], tmp_path: Path) -> None:
    plain = metrics(run(train_kto.main, flags))
    assert max(line["kl_baseline"] for line in plain) > 0  # otherwise one of each micro-batch might pass
    for number, variant in enumerate(
        [{"packing_samples": True}, {"micro_train_batch_size": 4}, {"gradient_checkpointing": True}]
    ):
        got = metrics(run(train_kto.main, flags | variant | {"save_path": tmp_path / str(number)}))
        for a, b in zip(plain, got, strict=True):
            assert a == pytest.approx(b, rel=1e-3, abs=1e-5)


def test_a_weight_of_zero_silences_a_label(flags: dict[str, Any]) -> None:
    """All the answers of the data are undesirable, so nothing pulls and the model stays."""
    bad = [{**row, "good": 0} for row in ROWS]
    folder = run(
        train_kto.main,
        flags
        | {"undesirable_loss_weight": 0, "dataset": write_rows(Path(flags["dataset"]).with_name("bad.jsonl"), bad)},
    )
    assert column(folder, "loss") == column(folder, "grad_norm") == [0.0] * 4


def test_a_wrong_label_ends_the_command_with_a_sentence(
    flags: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*ROWS, {"q": "well? ", "a": "yes", "good": None}]
    with pytest.raises(SystemExit) as stop:
        run(train_kto.main, flags | {"dataset": write_rows(tmp_path / "wrong.jsonl", rows)})
    assert stop.value.code == 2
    assert "--dataset row 8: the column 'good' of --label_key holds None" in capsys.readouterr().err


@pytest.mark.slow
def test_two_ranks_on_deepspeed_give_the_numbers_of_one_process(flags: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    flags |= {"dataset": write_rows(tmp_path / "odd.jsonl", ROWS[:7]), "seed": 3}
    alone = metrics(run(train_kto.main, flags))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = tmp_path / "two"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"),
        *(f"--master-port={port}", "-m", "openrlhf.cli.train_kto"),
        *words(flags | {"save_path": out, "zero_stage": 3}),
    ]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    for a, b in zip(alone, metrics(out), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)
