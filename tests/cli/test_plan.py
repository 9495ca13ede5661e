"""``openrlhf plan``: command lines out, exit codes, and sentences for what is no model or cluster."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from openrlhf.cli.check import take_apart
from openrlhf.cli.main import VERBS, main
from openrlhf.config.commands import PPOConfig, SFTConfig
from openrlhf.config.parse import read


def plan(line: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = 0
    try:
        main(["plan", *line.split()])
    except SystemExit as stop:
        code = int(stop.code or 0)
    shown = capsys.readouterr()
    return code, shown.out + shown.err


def commands(shown: str) -> list[list[str]]:
    return [shlex.split(text) for text in shown.splitlines() if text.lstrip().startswith(("openrlhf ppo", "deepspeed"))]


def test_rl_layouts_come_as_commands(capsys: pytest.CaptureFixture[str]) -> None:
    code, shown = plan(
        "--model 8B --cluster 8xH100-80G --advantage_estimator rloo --n_samples_per_prompt 8 --rollout_batch_size 128",
        capsys,
    )
    assert code == 0
    assert shown.startswith("ppo: 8.03B parameters on 8xH100-80G")
    found = commands(shown)
    assert len(found) == 3
    for words in found:
        assert words[0] == "openrlhf" and words[1] in VERBS  # as the shell would find it
        line = take_apart(words)  # as openrlhf check reads it
        assert line.verb == "ppo"
        config = read(PPOConfig, line.flags)
        assert config.algorithm.advantage_estimator == "rloo" and config.rollout.n_samples_per_prompt == 8
    for part in ("a step (generate ", "of 76.0 GB (", "optimizer", "limit: ", "texts at a time"):
        assert part in shown


def test_supervised_layouts_come_with_their_launcher(capsys: pytest.CaptureFixture[str], tiny_folder: Path) -> None:
    code, shown = plan(f"sft --model {tiny_folder} --cluster 2x4xA100-40G --max_len 512", capsys)
    assert code == 0
    line = take_apart(commands(shown)[0])
    assert (line.verb, line.workers) == ("sft", 8)
    assert read(SFTConfig, line.flags).dataset.max_len == 512


def test_what_cannot_fit_is_refused_with_flags_and_the_next_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    code, shown = plan("--model 70B --cluster 8xH100-80G --zero_stage 3 --vllm_tensor_parallel_size 8", capsys)
    assert code == 1
    assert "no layout fits. The nearest (" in shown
    assert "--cluster 4x8xH100-80G would do." in shown or "--cluster 2x8xH100-80G would do." in shown


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--model 8B", "openrlhf plan needs --cluster, as in --model 8B --cluster 8xH100-80G."),
        ("--cluster 8xH100", "openrlhf plan needs --model"),
        ("--model 9B --cluster 8xH100", "--model 9B: no such folder; give one, a size (0.5B, 1.5B"),
        ("--model 8B --cluster many", "--cluster 'many' is not a cluster"),
        ("demo --model 8B --cluster 8xH100", "openrlhf plan demo: choose one of ppo, sft"),
        ("--model 8B --cluster 8xH100 --zero_stag 3", "--zero_stag is not a flag of this command; did you mean"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_plan(line: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown = plan(line, capsys)
    assert code == 2
    assert told in shown


def test_flags_that_exclude_each_other_are_said_to(capsys: pytest.CaptureFixture[str]) -> None:
    code, shown = plan("--model 0.5B --cluster 8xH100 --train_batch_size 7", capsys)
    assert code == 1
    assert "no layout keeps the rules of the flags" in shown
    for kind in ("colocated", "resident", "split", "async"):
        assert f"not looked at, {kind}: --rollout_batch_size × --n_samples_per_prompt = 1024 samples are not" in shown


def test_a_batch_that_the_workers_cannot_share_is_said_beside_the_layouts_that_can(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = "--model 0.5B --cluster 8xH100 --init_kl_coef 0 --advantage_estimator rloo --n_samples_per_prompt 2"
    code, shown = plan(f"{line} --train_batch_size 20 --rollout_batch_size 20", capsys)
    assert code == 0
    assert {"1. split", "2. async"} <= {text.split(":")[0] for text in shown.splitlines()} or "1. async" in shown
    want = "not looked at, colocated: --train_batch_size 20 is not a multiple of --micro_train_batch_size 1 × 8 workers"
    assert want in shown
    code, shown = plan("sft --model 0.5B --cluster 8xH100 --train_batch_size 12", capsys)
    assert code == 1
    assert "not looked at, ZeRO 3: --train_batch_size 12 is not a multiple of --micro_train_batch_size 1 × 8" in shown


def test_a_folder_stands_in_the_command(capsys: pytest.CaptureFixture[str], tiny_folder: Path) -> None:
    _, shown = plan(f"--model {tiny_folder} --cluster 1xH100", capsys)
    assert f"--pretrain {tiny_folder} " in shown and " on 1 GPU: " in shown
