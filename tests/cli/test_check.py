"""``openrlhf check``: every finding of a command line, and what the shell is told."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import pytest

import openrlhf.models.load
from openrlhf.cli.check import take_apart
from openrlhf.cli.main import main
from openrlhf.config.parse import write_yaml
from openrlhf.models.tiny import build_tokenizer
from tests.cli.test_preview import COMMANDS, ROWS, of
from tests.recipes.helpers import words, write_rows


@pytest.fixture
def flags(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    def refuse(*anything: object) -> None:
        raise AssertionError("a check loads no model")

    monkeypatch.setattr(openrlhf.models.load, "_load", refuse)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return {
        "pretrain": tiny_folder, "dataset": write_rows(tmp_path / "rows.jsonl", ROWS), "save_path": tmp_path / "out",
        "train_batch_size": 8, "micro_train_batch_size": 8,
    }  # fmt: skip


def check(line: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """The exit code and the lines of findings, with a single space between words."""
    code = 0
    try:
        main(["check", *line])
    except SystemExit as stop:
        code = int(stop.code or 0)
    shown = capsys.readouterr()
    return code, [" ".join(text.split()) for text in (shown.out + shown.err).splitlines()]


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_run_that_would_start(verb: str, flags: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = check([verb, *words(of(verb, flags))], capsys)
    assert code == 0, lines
    assert lines[-1].startswith("the run would start: 0 errors, ")
    for part in COMMANDS[verb][1][:1]:
        assert any(" ".join(part.splitlines()[0].split()) in text for text in lines)
    assert any(text.startswith("ok data --") for text in lines)
    if verb != "prm":
        flag = "prompt_data" if verb == "ppo" else "dataset"
        assert any(text.startswith(f"warning data --{flag}: 1 row is dropped: empty ") for text in lines)
    assert not Path(flags["save_path"]).exists()


@pytest.mark.parametrize(
    ("verb", "wrong", "finding"),
    [
        ("sft", {"lr_scheduler": "cosin"}, "error flags --lr_scheduler 'cosin' is not one of"),
        ("sft", {"pretrain": "/nowhere/model"}, "error models --pretrain /nowhere/model: no model could be loaded"),
        ("sft", {"dataset": "/nowhere/rows.jsonl"}, "error data --dataset /nowhere/rows.jsonl: there is no such file"),
        ("sft", {"eval_dataset": "/nowhere/r.jsonl"}, "error data --eval_dataset /nowhere/r.jsonl: there is no such"),
        ("sft", {"output_key": "answer"}, "error data --dataset row 0: "),
        ("sft", {"strict_data": True}, "error data --strict_data: not every row of --dataset can be used whole"),
        ("sft", {"ring_attn_size": 2, "packing_samples": True}, "error devices --ring_attn_size 2 needs 2 processes"),
        ("sft", {"train_batch_size": 64}, "warning data --dataset has 5 usable rows, fewer than one"),
        ("sft", {"max_len": 20}, "warning data --dataset: 1 row is dropped: prompt of --max_len - 2 tokens or more"),
        ("sft", {}, "ok data --dataset: no flag names the columns chosen, rejected, label, m, steps, marks, so"),
        ("rm", {}, "ok data --dataset: no flag names the columns a, label, m, steps, marks, so they are not read"),
        ("ppo", {}, "ok data --prompt_data: no flag names the columns chosen, rejected, label, m, steps, marks, so"),
        ("dpo", {"prompt_key": None}, "warning data --dataset: chosen and rejected of 5 pairs differ from the first"),
        ("ppo", {"remote_rm_url": "/nowhere/r.py"}, "error reward --remote_rm_url /nowhere/r.py: no such Python file"),
        ("ppo", {"save_steps": 1, "ckpt_path": "."}, "ok disk --ckpt_path .: a checkpoint takes"),
    ],
    ids=lambda value: next(iter(value), "nothing") if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_finding(
    verb: str, wrong: dict[str, Any], finding: str, flags: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    flags["dataset"].write_text(flags["dataset"].read_text().replace('"q": "4+1="', '"q": "4 plus 1="'))
    code, lines = check([verb, *words(of(verb, flags) | wrong)], capsys)
    assert any(text.startswith(finding) for text in lines), lines
    assert code == (1 if finding.startswith("error") else 0)
    assert lines[-1].startswith("the run would not start: " if code else "the run would start: ")


@pytest.mark.parametrize("verb", COMMANDS)
def test_rows_are_read_without_the_model(verb: str, flags: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """A name that is not on this disk: all is told of the rows but their lengths in tokens, which no limit cuts."""
    limit = {"prompt_max_len" if verb == "ppo" else "max_len": 3}
    code, lines = check([verb, *words(of(verb, flags) | {"pretrain": "/nowhere/model"} | limit)], capsys)
    assert code == 1
    flag, used = "prompt_data" if verb == "ppo" else "dataset", 6 if verb == "prm" else 5
    want = f"ok data --{flag}: {used} rows are used; how long they are was not measured, without the tokenizer of"
    assert any(text.startswith(want) for text in lines), lines
    if verb != "prm":
        assert any(text.startswith(f"warning data --{flag}: 1 row is dropped: empty ") for text in lines)
    assert not any("token" in text for text in lines if text.startswith("warning data"))
    assert any(text.startswith("ok reward ") for text in lines) == (verb == "ppo")


def test_a_missing_column_is_told_without_the_model(flags: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {"pretrain": "/nowhere/model", "output_key": "answer"}
    _, lines = check(["sft", *words(of("sft", flags) | wrong)], capsys)
    assert any(text.startswith("error data --dataset row 0: ") and "answer" in text for text in lines), lines
    labels = of("prm", flags | {"pretrain": "/nowhere/model"})
    del labels["reward_tokens"]
    _, lines = check(["prm", *words(labels)], capsys)
    assert any("without --reward_tokens a label may be any token of --pretrain" in text for text in lines), lines


def test_every_broken_rule_is_told(flags: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {"lr_scheduler": "cosin", "ring_attn_size": 2, "input_template": "no braces"}
    code, lines = check(["sft", *words(of("sft", flags) | wrong)], capsys)
    assert code == 1
    assert sum(text.startswith("error flags") for text in lines) == 3


@pytest.mark.parametrize(
    ("verb", "flag"), [("dpo", "ref_pretrain"), ("kd", "teacher_model"), ("ppo", "critic_pretrain")]
)
def test_a_stranger_among_the_models(
    verb: str, flag: str, flags: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_tokenizer(tmp_path / "stranger", ["quite another text"] * 3, vocab_size=300)
    line = of(verb, flags) | {flag: tmp_path / "stranger"} | ({"advantage_estimator": "gae"} if verb == "ppo" else {})
    code, lines = check([verb, *words(line)], capsys)
    assert code == 1
    assert any(
        text.startswith(f"error models --{flag} {tmp_path}/stranger: its tokenizer has another") for text in lines
    )


def test_a_reward_is_tried_on_answers(flags: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    line = of("ppo", flags)
    line["remote_rm_url"].write_text(
        "def reward_func(queries, prompts, labels):\n"
        "    return [float(l in q[len(p):]) for q, p, l in zip(queries, prompts, labels)]\n"
    )
    _, lines = check(["ppo", *words(line)], capsys)
    where = f"ok reward --remote_rm_url {line['remote_rm_url']}"
    assert f"{where}: of 4 rows, answers are paid: right ones 1, cut ones 0, repeated ones 1, empty ones 0" in lines
    assert any("repeated ones 1: no less" in text for text in lines if text.startswith("warning reward"))
    line["remote_rm_url"].write_text("def reward_func(queries, prompts, labels):\n    return [1.0]\n")
    code, lines = check(["ppo", *words(line)], capsys)
    assert code == 1
    assert any("rewards has 1 entries for 4 samples" in text for text in lines if text.startswith("error reward"))


def on_a_cluster(flags: dict[str, Any], **more: Any) -> list[str]:
    line = {name: value for name, value in of("ppo", flags).items() if name != "local"}
    return words(line | {"vllm_num_engines": 4, "vllm_tensor_parallel_size": 2, "train_batch_size": 8} | more)


def test_a_placement_meets_a_cluster(flags: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    shape = {"actor_num_gpus_per_node": 4, "ref_num_gpus_per_node": 4, "micro_train_batch_size": 1}
    code, lines = check([*["--assume", "2x8xH100-80G", "ppo"], *on_a_cluster(flags, **shape)], capsys)
    told = "2x8xH100-80G has 16 GPUs; actor on 4, reference on 4, 4 × 2 engines on their own: 16 devices"
    assert f"ok devices {told}" in lines
    assert any(text.startswith("ok memory engines takes about 76.0 of 80.0 GB of a GPU (att") for text in lines), lines
    assert code == 0, lines
    code, lines = check(["ppo", *on_a_cluster(flags, **shape), "--assume", "1x8xH100-80G"], capsys)
    assert code == 1
    assert any("the run needs 16 GPUs and 8xH100-80G has 8: lower --actor_num" in text for text in lines)
    code, lines = check(["ppo", *on_a_cluster(flags, **shape), "--assume=16x1xH100-80G"], capsys)
    assert code == 1
    assert any("error devices --vllm_tensor_parallel_size 2: the GPUs of an engine are of one" in t for t in lines)
    code, lines = check(["ppo", *on_a_cluster(flags, **shape), "--assume", "4x8xH100-80G"], capsys)
    assert any("the run uses 16 of the 32 GPUs" in text for text in lines)


def test_memory_is_estimated_without_weights(
    flags: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether a model fits may be asked before its weights are downloaded."""
    copytree(flags["pretrain"], tmp_path / "sizes", ignore=ignore_patterns("*.safetensors"))
    code, lines = check(
        ["sft", "--assume", "1xL4", *words(of("sft", flags) | {"pretrain": tmp_path / "sizes"})], capsys
    )
    assert code == 1
    assert any(text.startswith("error models") and "has no weights" in text for text in lines), lines
    assert any(text.startswith("ok memory model takes about ") for text in lines), lines


def test_processes_of_a_launcher_share_the_batch(flags: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    line = words(of("sft", flags) | {"micro_train_batch_size": 1})
    code, lines = check([*["deepspeed", "--num_gpus", "8", "--module", "openrlhf.cli.train_sft"], *line], capsys)
    assert code == 0 and "ok devices 8 processes" in lines
    code, lines = check([*["torchrun", "--nproc_per_node=3", "-m", "openrlhf.cli.train_sft"], *line], capsys)
    assert code == 1
    assert any(t.startswith("error devices --train_batch_size 8 is not a multiple of --micro_train") for t in lines)


def test_only_the_first_rows_are_looked_at(flags: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = check(["sft", "--rows", "2", *words(of("sft", flags))], capsys)
    assert code == 0
    assert any(text.startswith("ok data --dataset: the first 2 rows: 2 rows are used; ") for text in lines)
    assert not any("dropped" in text for text in lines)


def test_a_file_of_flags(flags: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from openrlhf.config.commands import SFTConfig
    from openrlhf.config.parse import read

    write_yaml(read(SFTConfig, words(of("sft", flags))), tmp_path / "run.yaml")
    code, _ = check(["sft", "--config", str(tmp_path / "run.yaml")], capsys)
    assert code == 0


@pytest.mark.parametrize(
    ("line", "verb", "workers"),
    [
        ("sft --seed 1", "sft", None),
        ("train_sft --seed 1", "sft", None),
        ("python -m openrlhf.cli.train_sft --seed 1", "sft", None),
        (".venv/bin/openrlhf sft --seed 1", "sft", None),
        ("deepspeed --num_nodes 2 --num_gpus 4 --module openrlhf.cli.train_dpo --seed 1", "dpo", 8),
        ("torchrun --nnodes=2 --nproc-per-node=8 -m openrlhf.cli.train_rm --seed 1", "rm", 16),
        ("ray job submit --address a -- python3 -m openrlhf.cli.train_ppo_ray --seed 1", "ppo", None),
    ],
)
def test_every_spelling_of_a_command(line: str, verb: str, workers: int | None) -> None:
    found = take_apart(line.split())
    assert (found.verb, found.flags, found.workers) == (verb, ["--seed", "1"], workers)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--pretrain x", "needs a command before its flags: one of sft, rm, dpo"),
        ("--pretrain sft", "needs a command before its flags"),
        ("demo", "needs a command before its flags"),
        ("sft --learning_rat 1", "--learning_rat is not a flag of this command; did you mean --learning_rate"),
        ("sft --train_batch_size many", "invalid int value: 'many'"),
        ("sft --pretrain x --dataset y --rows none", "--rows 'none' must be a number of at least 1"),
        ("sft --pretrain x --dataset y --assume", "--assume needs a value"),
        ("sft --pretrain x --dataset y --assume 8", "--assume '8' is not a cluster"),
    ],
)
def test_a_line_that_is_no_command(line: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = check(line.split(), capsys)
    assert code == 2
    assert told in lines[-1]


def test_the_other_commands_have_their_flags_packages_and_models_looked_at(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = check(["serve_rm", "--reward_pretrain", str(tiny_folder)], capsys)
    assert code == 1
    assert any(text.startswith("error models --reward_pretrain") and "no reward head" in text for text in lines)
    code, lines = check(["interactive_chat", "--pretrain", str(tiny_folder)], capsys)
    assert code == 0, lines
