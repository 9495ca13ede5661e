"""``openrlhf kd`` from files and a teacher to a folder that Transformers loads."""

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

from openrlhf.cli import train_sft
from openrlhf.cli.train_kd import main
from openrlhf.models.tiny import build_model, build_tokenizer
from tests.recipes.helpers import column, metrics, run, words, write_rows

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven"]
ROWS = [{"q": f"{i}", "a": word} for i, word in enumerate(WORDS)]
COMMON = {"input_key": "q", "output_key": "a", "input_template": "{}=", "max_len": 64, "train_batch_size": 4}


@pytest.fixture(scope="module")
def teacher(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wider model than the student, that knows the eight rows by heart."""
    folder = tmp_path_factory.mktemp("teacher")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.save_pretrained(folder / "start")
    build_model(folder / "start", vocab_size=len(tokenizer) + 5, hidden=96, tied=False, seed=5)
    flags = {
        **COMMON, "pretrain": folder / "start", "dataset": write_rows(folder / "rows.jsonl", ROWS),
        "micro_train_batch_size": 4, "max_epochs": 80, "learning_rate": 1e-2, "save_path": folder / "trained",
    }  # fmt: skip
    trained = run(train_sft.main, flags)
    assert max(column(trained, "loss")[-2:]) < 0.05
    return trained


def mean_entropy(folder: Path) -> float:
    """Of the model's distributions over the answer tokens: the least cross-entropy that a student can reach."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    entropies = []
    for row in ROWS:
        ids, answer = (tokenizer(t, add_special_tokens=False).input_ids for t in (f"{row['q']}=", row["a"]))
        p = model(torch.tensor([ids + answer])).logits[0, len(ids) - 1 :, : len(tokenizer)].softmax(-1)
        entropies += (-(p * p.log()).sum(dim=1)).tolist()
    return sum(entropies) / len(entropies)


@pytest.fixture
def flags(tiny_folder: Path, teacher: Path, tmp_path: Path) -> dict[str, Any]:
    """Eight rows, two steps an epoch."""
    return {
        **COMMON, "pretrain": tiny_folder, "teacher_model": teacher, "dataset": write_rows(tmp_path / "r.jsonl", ROWS),
        "micro_train_batch_size": 2, "max_epochs": 2, "learning_rate": 1e-3, "save_path": tmp_path / "out",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("variant", [{}, {"packing_samples": True}, {"kd_coef": 1.0}], ids=str)
def test_it_learns_eight_rows_from_its_teacher(flags: dict[str, Any], variant: dict[str, Any]) -> None:
    """With the whole weight on the teacher too: the answers are then learned from its probabilities alone."""
    flags |= {"max_epochs": 40, "learning_rate": 1e-2, "micro_train_batch_size": 4, "eval_dataset": flags["dataset"]}
    folder = run(main, flags | {"eval_split": "train", **variant})
    distill, nll, loss = (column(folder, name) for name in ("distill", "nll", "loss"))
    coef = variant.get("kd_coef", 0.4)
    assert loss == pytest.approx([(1 - coef) * a + coef * b for a, b in zip(nll, distill, strict=True)], rel=1e-4)
    assert distill[0] > 4
    evaluated, least = column(folder, "eval_distill"), mean_entropy(flags["teacher_model"])
    assert len(evaluated) == 40
    assert least <= evaluated[-1] < least + 0.25

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for row in ROWS:
        prompt = tokenizer(row["q"] + "=", return_tensors="pt", add_special_tokens=False)
        text = model.generate(**prompt, max_new_tokens=20, do_sample=False, pad_token_id=0)[
            0, prompt.input_ids.shape[1] :
        ]
        assert tokenizer.decode(text, skip_special_tokens=True) == row["a"]


@pytest.mark.slow
def test_packing_micro_batches_and_recomputation_are_matters_of_speed(flags: dict[str, Any], tmp_path: Path) -> None:
    plain = metrics(run(main, flags))
    variants = [
        {"packing_samples": True},
        {"micro_train_batch_size": 1},
        {"micro_train_batch_size": 4, "gradient_checkpointing": True},
    ]
    for number, variant in enumerate(variants):
        other = metrics(run(main, flags | variant | {"save_path": tmp_path / f"variant{number}"}))
        for row, expected in zip(other, plain, strict=True):
            assert row == pytest.approx(expected, rel=2e-4)


def test_without_weight_on_the_teacher_it_is_supervised_fine_tuning(flags: dict[str, Any], tmp_path: Path) -> None:
    sft = {name: value for name, value in flags.items() if name != "teacher_model"} | {"save_path": tmp_path / "sft"}
    expected = column(run(train_sft.main, sft), "loss")
    assert column(run(main, flags | {"kd_coef": 0.0}), "loss") == pytest.approx(expected, rel=1e-5)


def test_bfloat16_stays_close(flags: dict[str, Any], tmp_path: Path) -> None:
    plain = column(run(main, flags), "distill")
    assert column(run(main, flags | {"bf16": True, "save_path": tmp_path / "half"}), "distill") == pytest.approx(
        plain, rel=0.05
    )


def test_a_teacher_of_other_tokens_is_refused(
    flags: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger = tmp_path / "stranger"
    tokenizer = build_tokenizer(stranger, ["quite other words, over and over: words, words"], vocab_size=300)
    build_model(stranger, vocab_size=len(tokenizer))
    with pytest.raises(SystemExit) as stopped:
        main(words(flags | {"teacher_model": stranger}))
    assert stopped.value.code == 2
    sentence = capsys.readouterr().err
    assert f"--teacher_model {stranger}" in sentence and "vocabulary" in sentence


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"teacher_model": "./nowhere"}, "--teacher_model ./nowhere"), ({"teacher_offload": True}, "--teacher_offload")],
)
def test_other_refusals_name_their_flag(
    flags: dict[str, Any], capsys: pytest.CaptureFixture[str], changed: dict[str, Any], named: str
) -> None:
    with pytest.raises(SystemExit):
        main(words(flags | changed))
    assert named in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("offload", [False, True])
def test_two_ranks_on_deepspeed_give_the_numbers_of_one_process(
    flags: dict[str, Any], tmp_path: Path, offload: bool
) -> None:
    """Weights of both models in shards, two tokens of logits at a time, and a rank that once has a row without loss."""
    pytest.importorskip("deepspeed")
    flags |= {"dataset": write_rows(tmp_path / "seven.jsonl", ROWS[:7])}
    alone = metrics(run(main, flags))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out, script = tmp_path / "two", tmp_path / "in_chunks.py"
    script.write_text(
        "from openrlhf.cli.train_kd import main\n"
        "from openrlhf.models.head import CHUNK_ELEMENTS\n"
        "CHUNK_ELEMENTS['cpu'] = 600\n"
        "main()\n"
    )
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"),
        *(f"--master-port={port}", str(script)),
        *words(flags | {"save_path": out, "zero_stage": 3} | ({"teacher_offload": True} if offload else {})),
    ]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    for a, b in zip(alone, metrics(out), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)
