"""``openrlhf sft`` from files to a folder that Transformers loads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from openrlhf.cli.train_sft import main
from tests.recipes.helpers import column, free_port, launched, metrics, run, words, write_rows

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven"]
ROWS = [{"q": f"{i}", "a": word} for i, word in enumerate(WORDS)]


@pytest.fixture
def flags(tiny_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """Eight rows, two steps an epoch."""
    return {
        "pretrain": tiny_folder, "dataset": write_rows(tmp_path / "rows.jsonl", ROWS), "input_key": "q",
        "output_key": "a", "input_template": "{}=", "max_len": 64, "train_batch_size": 4, "micro_train_batch_size": 2,
        "max_epochs": 2, "learning_rate": 1e-3, "save_path": tmp_path / "out",
    }  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
def test_it_learns_eight_rows_by_heart(flags: dict[str, Any], packed: bool) -> None:
    flags |= {"max_epochs": 30, "learning_rate": 1e-2, "micro_train_batch_size": 4}
    folder = run(main, flags | ({"packing_samples": True} if packed else {}))
    losses = column(folder, "loss")
    assert len(losses) == 60
    assert losses[0] > 4
    assert sum(losses[-2:]) / 2 < 0.1
    assert column(folder, "epoch") == [step // 2 for step in range(60)]

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for row in ROWS:
        prompt = tokenizer(row["q"] + "=", return_tensors="pt", add_special_tokens=False)
        text = model.generate(**prompt, max_new_tokens=20, do_sample=False, pad_token_id=0)[
            0, prompt.input_ids.shape[1] :
        ]
        assert tokenizer.decode(text, skip_special_tokens=True) == row["a"]


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


def test_the_written_config_repeats_the_run(flags: dict[str, Any], tmp_path: Path) -> None:
    first = run(main, flags)
    again = tmp_path / "again"
    main(["--config", str(first / "run_config.yaml"), "--save_path", str(again)])
    assert metrics(again) == metrics(first)
    weights, same = (AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (first, again))
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    written, rewritten = (yaml.safe_load((f / "run_config.yaml").read_text()) for f in (first, again))
    assert written | {"save_path": None} == rewritten | {"save_path": None}


def test_a_seed_decides_the_run(flags: dict[str, Any], tmp_path: Path) -> None:
    first = metrics(run(main, flags))
    assert metrics(run(main, flags | {"save_path": tmp_path / "same"})) == first
    assert metrics(run(main, flags | {"save_path": tmp_path / "other", "seed": 7})) != first


@pytest.mark.parametrize(("eval_steps", "count"), [(-1, 2), (1, 4), (3, 1)])
def test_evaluation_rows_give_an_eval_loss(flags: dict[str, Any], tmp_path: Path, eval_steps: int, count: int) -> None:
    held_out = write_rows(tmp_path / "eval.jsonl", ROWS[:3])
    folder = run(main, flags | {"eval_dataset": held_out, "eval_steps": eval_steps, "learning_rate": 5e-3})
    losses = column(folder, "eval_loss")
    assert len(losses) == count
    assert losses == sorted(losses, reverse=True)


def test_whole_texts_are_learned_in_pretrain_mode(flags: dict[str, Any], tmp_path: Path) -> None:
    """The first loss is the cross-entropy of the plain texts under the starting model."""
    texts = ["hello there, how are you?", "the answer is 5."]
    flags |= {"dataset": write_rows(tmp_path / "text.jsonl", [{"q": text} for text in texts]), "pretrain_mode": True}
    del flags["output_key"]
    first = column(run(main, flags), "loss")[0]
    model = AutoModelForCausalLM.from_pretrained(flags["pretrain"])
    tokenizer = AutoTokenizer.from_pretrained(flags["pretrain"])
    losses = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        table = model(ids).logits[0].log_softmax(-1)
        losses += [-table[t - 1, ids[0, t]].item() for t in range(1, ids.shape[1])]
    assert first == pytest.approx(sum(losses) / len(losses), rel=1e-4)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_two_processes_end_where_one_does(flags: dict[str, Any], tmp_path: Path, launcher: str) -> None:
    """Three rows to a mini-batch of four at the end of an epoch, so that a rank once has a row without loss."""
    pytest.importorskip("deepspeed")
    flags |= {"dataset": write_rows(tmp_path / "seven.jsonl", ROWS[:7]), "zero_stage": 2, "lr_warmup_ratio": 0}
    alone = run(main, flags)
    together = tmp_path / "together"
    line = words(flags | {"save_path": together})
    if launcher == "torchrun":
        start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()]
        launched([*start, "-m", "openrlhf.cli.train_sft", *line])
    else:
        start = [str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators", "2"]
        launched([*start, "--master_port", free_port(), "--module", "openrlhf.cli.train_sft", *line])
    assert column(together, "loss") == pytest.approx(column(alone, "loss"), rel=1e-4)
    assert column(together, "grad_norm") == pytest.approx(column(alone, "grad_norm"), rel=1e-3)
    expected = AutoModelForCausalLM.from_pretrained(alone).state_dict()
    start_weights = AutoModelForCausalLM.from_pretrained(flags["pretrain"]).state_dict()
    for name, value in AutoModelForCausalLM.from_pretrained(together).state_dict().items():
        moved, wanted = value - start_weights[name], expected[name] - start_weights[name]
        assert float((moved - wanted).norm()) < 0.02 * float(wanted.norm()), name
