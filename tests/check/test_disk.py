"""Room on the disks."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from openrlhf.check.disk import check_disk, look_at_disk, needed
from openrlhf.config.commands import PPOConfig, SFTConfig, build
from openrlhf.models.load import load_causal_lm

Usage = namedtuple("Usage", "total used free")


def sft(folder: Path, **flags: Any) -> SFTConfig:
    return build(SFTConfig, {"pretrain": str(folder), "dataset": "d"} | flags)


@pytest.fixture
def parameters(tiny_folder: Path) -> int:
    return sum(p.numel() for p in load_causal_lm(str(tiny_folder), sft(tiny_folder).model).parameters())


def test_what_is_written(tiny_folder: Path, parameters: int) -> None:
    """Weights in 4 or 2 bytes; in a checkpoint 12 for weight and moments, 4 for the average; one more than are kept."""
    n = parameters
    assert needed(sft(tiny_folder)).model == 4 * n
    assert needed(sft(tiny_folder, bf16=True)).model == 2 * n
    assert needed(sft(tiny_folder)).most == 0
    kept = needed(sft(tiny_folder, save_steps=1, max_ckpt_num=2, save_hf_ckpt=True))
    assert (kept.checkpoint, kept.most) == (16 * n, 3 * 16 * n)
    assert needed(sft(tiny_folder, save_steps=1, save_hf_ckpt=True, disable_ds_ckpt=True)).checkpoint == 4 * n
    ppo = {"pretrain": str(tiny_folder), "prompt_data": "p", "remote_rm_url": "r.py", "save_steps": 1}
    critic = 12 * (n + 64)  # a head beside the decoder, whose own is tied to the embeddings
    assert needed(build(PPOConfig, ppo)).checkpoint == 12 * n + critic
    assert needed(build(PPOConfig, ppo | {"advantage_estimator": "rloo", "enable_ema": True})).checkpoint == 16 * n


@pytest.mark.parametrize(
    ("times", "severities"),
    [
        (3.9, ["ok", "error", "ok", "error"]),
        (15, ["ok", "ok", "error"]),
        (20, ["ok", "ok", "warning"]),
        (70, ["ok"] * 2),
    ],
)
def test_a_disk_that_is_too_small(
    times: float, severities: list[str], tiny_folder: Path, tmp_path: Path, parameters: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = sft(tiny_folder, save_steps=1, save_path=str(tmp_path / "a/b"), ckpt_path=str(tmp_path / "c"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, int(times * parameters)))
    found = list(look_at_disk(config))
    assert [severity for severity, _ in found] == severities
    if "error" in severities:
        with pytest.raises(ValueError, match=r"--(save|ckpt)_path .*: .* make room"):
            check_disk(config)
    else:
        check_disk(config)
    assert not any(tmp_path.iterdir())


def test_checkpoints_that_are_there_give_way(
    tiny_folder: Path, tmp_path: Path, parameters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 5 * parameters))
    config = sft(tiny_folder, save_steps=1, save_path=str(tmp_path), ckpt_path=str(tmp_path / "c"))
    with pytest.raises(ValueError, match="one checkpoint takes"):
        check_disk(config)
    (tmp_path / "c/global_step1").mkdir(parents=True)
    (tmp_path / "c/global_step1/rank00000.pt").write_bytes(bytes(12 * parameters))
    check_disk(config)
