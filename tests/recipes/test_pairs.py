"""``openrlhf rm`` and ``openrlhf dpo`` from a file of pairs to a folder that Transformers loads."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from openrlhf.cli import train_dpo, train_rm
from tests.recipes.helpers import column, metrics, run, words, write_rows

# What is chosen says yes, whatever was asked: a rule that a tiny model finds.
PAIRS = [
    {"q": f"is {i} good? ", "chosen": "yes" + " sir" * (i % 3), "rejected": "no" + " way" * (i % 4)} for i in range(8)
]


@pytest.fixture
def flags(tiny_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """Eight pairs, two steps an epoch."""
    return {
        "pretrain": tiny_folder, "dataset": write_rows(tmp_path / "pairs.jsonl", PAIRS), "prompt_key": "q",
        "max_len": 64, "train_batch_size": 4, "micro_train_batch_size": 2, "max_epochs": 2, "learning_rate": 1e-3,
        "save_path": tmp_path / "out",
    }  # fmt: skip


def test_a_reward_model_tells_the_pairs_apart_and_loads_as_a_classifier(flags: dict[str, Any]) -> None:
    flags |= {"max_epochs": 20, "learning_rate": 3e-3, "eval_dataset": flags["dataset"]}
    folder = run(train_rm.main, flags)
    assert column(folder, "accuracy")[-1] == 1.0
    assert column(folder, "eval_accuracy")[-1] == 1.0
    assert column(folder, "loss")[-1] < 0.2 < column(folder, "loss")[0]

    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [pair["q"] + pair[side] + tokenizer.eos_token for pair in PAIRS for side in ("chosen", "rejected")]
    tokens = [tokenizer(text, return_tensors="pt", add_special_tokens=False) for text in texts]
    with torch.no_grad():
        scores = torch.cat([model.score(model.model(**t).last_hidden_state)[:, -1, 0] for t in tokens])
    assert bool((scores[0::2] > scores[1::2]).all())
    assert model.config.mean == pytest.approx(float(scores.mean()), abs=1e-5)
    assert model.config.std == pytest.approx(float(scores.std()), abs=1e-5)


def test_without_evaluation_pairs_it_says_whose_scores_the_statistics_are(flags: dict[str, Any], capsys: Any) -> None:
    run(train_rm.main, flags | {"max_epochs": 1})
    said = "the mean and std of the scores, for --normalize_reward, are of 8 of the 8 training pairs"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("variant", [{}, {"ipo": True}, {"label_smoothing": 0.1}, {"nll_loss_coef": 0.2}], ids=str)
def test_preferences_are_learned(flags: dict[str, Any], variant: dict[str, Any]) -> None:
    folder = run(train_dpo.main, flags | {"max_epochs": 10, "beta": 0.5, **variant})
    accuracy, margin = column(folder, "accuracy"), column(folder, "reward_margin")
    assert accuracy[-1] == 1.0
    assert margin[0] == pytest.approx(0.0, abs=1e-6)  # the policy starts at its reference
    assert margin[-1] > 0.1
    AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("main", [train_rm.main, train_dpo.main], ids=["rm", "dpo"])
def test_packing_micro_batches_and_recomputation_are_matters_of_speed(
    flags: dict[str, Any], tmp_path: Path, main: Any
) -> None:
    plain = metrics(run(main, flags))
    for number, variant in enumerate(
        [{"packing_samples": True}, {"micro_train_batch_size": 1}, {"gradient_checkpointing": True}]
    ):
        got = metrics(run(main, flags | variant | {"save_path": tmp_path / str(number)}))
        for a, b in zip(plain, got, strict=True):
            assert a == pytest.approx(b, rel=1e-3, abs=1e-5)


def test_a_margin_raises_the_loss_of_its_pair(flags: dict[str, Any], tmp_path: Path) -> None:
    rows = [{**pair, "margin": 3.0} for pair in PAIRS]
    wide = {"dataset": write_rows(tmp_path / "wide.jsonl", rows), "margin_loss": True, "save_path": tmp_path / "wide"}
    without, with_margin = (column(run(train_rm.main, flags | extra), "loss")[0] for extra in ({}, wide))
    assert with_margin > without + 2


@pytest.mark.slow
@pytest.mark.parametrize("module", ["train_rm", "train_dpo"])
def test_two_ranks_on_deepspeed_give_the_numbers_of_one_process(
    flags: dict[str, Any], tmp_path: Path, module: str
) -> None:
    pytest.importorskip("deepspeed")
    flags |= {"dataset": write_rows(tmp_path / "odd.jsonl", PAIRS[:7]), "seed": 3}
    main = {"train_rm": train_rm.main, "train_dpo": train_dpo.main}[module]
    alone = metrics(run(main, flags))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = tmp_path / "two"
    # Some ranks' pairs fit into fewer forwards of 60 tokens than others'.
    by_tokens = {"micro_train_batch_size": None, "use_dynamic_batch": True, "train_max_tokens_per_gpu": 60}
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"),
        *(f"--master-port={port}", "-m", f"openrlhf.cli.{module}"),
        *words(flags | {"save_path": out, "zero_stage": 3, **by_tokens}),
    ]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    for a, b in zip(alone, metrics(out), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)
