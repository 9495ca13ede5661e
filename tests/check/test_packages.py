"""Packages that the flags ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from openrlhf.check import packages
from openrlhf.check.packages import check_packages, look_at_packages, needed
from openrlhf.config.commands import PPOConfig, ServeRMConfig, SFTConfig, build

SFT = {"pretrain": "x", "dataset": "y"}
PPO = {"pretrain": "x", "prompt_data": "y", "remote_rm_url": "r.py"}


def sft(**flags: Any) -> SFTConfig:
    return build(SFTConfig, SFT | flags)


@pytest.mark.parametrize(
    ("config", "launched", "names"),
    [
        (sft(), False, []),
        (sft(), True, ["deepspeed"]),
        (sft(adam_offload=True), False, ["deepspeed"]),
        (sft(use_wandb="true", use_tensorboard="logs"), False, ["tensorboard", "wandb"]),
        (sft(load_in_4bit=True, lora_rank=8), False, ["bitsandbytes"]),
        (sft(use_liger_kernel=True, use_ms=True), False, ["liger-kernel", "modelscope"]),
        (build(PPOConfig, PPO), False, ["deepspeed", "ray", "vllm"]),
        (build(PPOConfig, PPO | {"local": True}), False, []),
        (build(ServeRMConfig, {"reward_pretrain": "x"}), False, ["starlette", "uvicorn"]),
    ],
)
def test_flags_ask_for_packages(config: Any, launched: bool, names: list[str]) -> None:
    assert sorted(needed(config, launched)) == names


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_is_here", lambda module: module != "wandb")
    with pytest.raises(
        ImportError, match=r"--use_wandb needs wandb, which is not here: pip install 'openrlhf\[wandb\]'"
    ):
        check_packages(sft(use_wandb="true"), launched=False)
    found = list(look_at_packages(sft(use_wandb="true"), launched=False))
    assert [severity for severity, _ in found] == ["ok", "error"]
    assert "wandb is not installed" in found[0][1]


def test_an_old_version_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "version", lambda package: "0.1")
    monkeypatch.setattr(packages.metadata, "requires", lambda name: ['wandb>=0.20; extra == "wandb"', "torch>=2"])
    (severity, sentence) = list(look_at_packages(sft(use_wandb="true"), launched=False))[-1]
    assert severity == "warning" and sentence.startswith("--use_wandb uses wandb 0.1, and wandb>=0.20")


def test_the_versions_of_what_is_here_are_those_of_the_packages(tmp_path: Path) -> None:
    import torch
    import transformers

    shown = next(iter(look_at_packages(sft(), launched=False)))[1]
    assert shown.startswith(f"torch {torch.__version__}, transformers {transformers.__version__}, ")
