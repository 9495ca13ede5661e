"""What a user gives wrong ends in one sentence and exit code 2, never in a traceback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openrlhf.cli import train_ppo_ray, train_sft
from tests.recipes.helpers import words, write_rows


@pytest.fixture
def sft(tiny_folder: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "pretrain": tiny_folder, "dataset": write_rows(tmp_path / "rows.jsonl", [{"q": "one", "a": "1"}] * 4),
        "input_key": "q", "output_key": "a", "max_len": 64, "train_batch_size": 2, "micro_train_batch_size": 2,
        "save_path": tmp_path / "out",
    }  # fmt: skip


@pytest.fixture
def ppo(tiny_folder: Path, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "reward.py").write_text("def reward_func(queries, prompts, labels):\n    return [1.0] * len(queries)\n")
    return {
        "local": True, "pretrain": tiny_folder, "prompt_data": write_rows(tmp_path / "p.jsonl", [{"input": "one"}] * 2),
        "remote_rm_url": tmp_path / "reward.py", "advantage_estimator": "rloo", "rollout_batch_size": 2,
        "n_samples_per_prompt": 2, "train_batch_size": 4, "micro_train_batch_size": 4, "generate_max_len": 4,
        "save_path": tmp_path / "out",
    }  # fmt: skip


def refused(
    main: Callable[[list[str]], None], flags: dict[str, Any], capsys: pytest.CaptureFixture[str], begun: bool = False
) -> str:
    """The last line on the screen. No file is written, unless the run had ``begun``."""
    with pytest.raises(SystemExit) as stop:
        main(words(flags))
    assert stop.value.code == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    written = Path(flags["save_path"] if "save_path" in flags else flags["output_path"])
    assert begun or not [path for path in written.rglob("*") if path.name == "run_config.yaml"]
    return shown.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"learning_rat": 1}, "--learning_rat is not a flag of this command; did you mean --learning_rate"),
        ({"train_batch_size": "many"}, "--train_batch_size: invalid int value: 'many'."),
        ({"lr_scheduler": "cosin"}, "--lr_scheduler 'cosin' is not one of cosine_with_min_lr, "),
        ({"pretrain": "/nowhere/model"}, "--pretrain /nowhere/model: no tokenizer could be loaded from there"),
        ({"dataset": "/nowhere/rows.jsonl"}, "--dataset /nowhere/rows.jsonl: there is no such file"),
        ({"eval_dataset": "/nowhere/rows.jsonl"}, "--eval_dataset /nowhere/rows.jsonl: there is no such file"),
        ({"output_key": "answer"}, "--dataset row 0: "),
        ({"ring_attn_size": 2, "packing_samples": True}, "--ring_attn_size 2 needs 2 processes: start the module with"),
        ({"adam_offload": True}, "--adam_offload needs DeepSpeed: start the module with `deepspeed --module"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_sft(sft: dict[str, Any], wrong: dict[str, Any], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(train_sft.main, sft | wrong, capsys).startswith(sentence)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"n_sample_per_prompt": 1}, "--n_sample_per_prompt is not a flag of this command; did you mean --n_samples"),
        ({"advantage_estimator": "grpo"}, "--advantage_estimator: there is no 'grpo' (did you mean dr_grpo?)"),
        ({"pretrain": "/nowhere/model"}, "--pretrain /nowhere/model: no tokenizer could be loaded from there"),
        ({"prompt_data": "/nowhere/p.jsonl"}, "--prompt_data /nowhere/p.jsonl: there is no such file"),
        ({"remote_rm_url": "/nowhere/reward.py"}, "--remote_rm_url /nowhere/reward.py: no such Python file"),
        ({"input_key": "question"}, "--prompt_data row 0: "),
        ({"kl_target": 0.1, "kl_horizon": 0}, "--kl_horizon is 0, but it must be at least 1."),
        (
            {"kl_target": 0.1, "rollout_batch_size": 50, "kl_horizon": 20},
            "--kl_horizon 20 is too short for 100 samples",
        ),
        ({"adam_offload": True}, "--local uses neither Ray nor DeepSpeed nor vLLM: leave out --adam_offload."),
        (
            {"ref_reward_offload": True},
            "--local uses neither Ray nor DeepSpeed nor vLLM: leave out --ref_reward_offload.",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_ppo(ppo: dict[str, Any], wrong: dict[str, Any], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(train_ppo_ray.main, ppo | wrong, capsys).startswith(sentence)


def test_a_reward_model_without_a_head(ppo: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    del ppo["remote_rm_url"]
    shown = refused(train_ppo_ray.main, ppo | {"reward_pretrain": ppo["pretrain"]}, capsys)
    assert shown.startswith(f"--reward_pretrain {ppo['pretrain']}: there is no reward head named 'score'")


def test_a_wrong_answer_of_the_reward_function(ppo: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    ppo["remote_rm_url"].write_text("def reward_func(queries, prompts, labels):\n    return [1.0]\n")
    said = "reward_func: rewards has 1 entries for 4 samples: [1.0]"
    assert refused(train_ppo_ray.main, ppo, capsys, begun=True) == said


def test_an_error_inside_the_reward_function_keeps_its_traceback(ppo: dict[str, Any]) -> None:
    ppo["remote_rm_url"].write_text("def reward_func(queries, prompts, labels):\n    return [int('x')]\n")
    with pytest.raises(ValueError, match="invalid literal") as failure:
        train_ppo_ray.main(words(ppo))
    assert failure.traceback[-1].path == ppo["remote_rm_url"]


def test_a_developer_can_have_the_traceback(sft: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENRLHF_TRACEBACK", "1")
    with pytest.raises(ValueError, match="/nowhere/model"):
        train_sft.main(words(sft | {"pretrain": "/nowhere/model"}))


@pytest.mark.slow
@pytest.mark.parametrize("start", [["-m", "openrlhf.cli.main", "sft"], ["-m", "openrlhf.cli.train_sft"]])
def test_the_shell_sees_the_same(sft: dict[str, Any], start: list[str]) -> None:
    line = [sys.executable, *start, *words(sft | {"pretrain": "/nowhere/model"})]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("--pretrain /nowhere/model: no tokenizer could be loaded")


def test_a_folder_that_cannot_be_written_is_named_before_training(
    ppo: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    sentence = refused(train_ppo_ray.main, ppo | {"save_path": tmp_path / "file" / "out"}, capsys)
    assert sentence.startswith(f"--save_path {tmp_path}/file/out cannot be written (Not a directory)")
