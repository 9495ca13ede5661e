"""The key of --use_wandb reaches W&B and nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from openrlhf.cli import train_ppo_ray, train_sft
from tests.recipes.helpers import words, write_rows

CANARY = "c4n4ry" * 6 + "0123"


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """In place of W&B: what it is told, and the key that it finds."""
    told: dict[str, Any] = {}

    def init(**given: Any) -> Any:
        told.update(given, key=os.environ["WANDB_API_KEY"])
        return SimpleNamespace(log=lambda *args, **kwargs: None, finish=lambda: None)

    monkeypatch.setenv("WANDB_API_KEY", "another")  # set back afterwards
    monkeypatch.setitem(__import__("sys").modules, "wandb", SimpleNamespace(init=init))
    return told


@pytest.mark.slow
@pytest.mark.parametrize("command", ["sft", "ppo"])
def test_the_key_is_written_nowhere(
    command: str, tiny_folder: Path, tmp_path: Path, wandb: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"input": "q", "a": "1"}] * 2)
    common = {
        "pretrain": tiny_folder, "train_batch_size": 2, "micro_train_batch_size": 2, "save_path": tmp_path / "out",
        "ckpt_path": tmp_path / "ckpt", "save_steps": 1, "use_wandb": CANARY,
    }  # fmt: skip
    if command == "sft":
        train_sft.main(words(common | {"dataset": rows, "output_key": "a"}))
    else:
        (tmp_path / "reward.py").write_text("def reward_func(queries, prompts, labels):\n    return [1.0] * 2\n")
        special = {
            "local": True, "prompt_data": rows, "remote_rm_url": tmp_path / "reward.py", "rollout_batch_size": 2,
            "advantage_estimator": "reinforce", "generate_max_len": 4, "init_kl_coef": 0,
        }  # fmt: skip
        train_ppo_ray.main(words(common | special))
    assert wandb.pop("key") == CANARY
    assert CANARY not in str(wandb) + "".join(capfd.readouterr())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"run_config.yaml", "metrics.jsonl", "manifest.json", "rank00000.pt"} <= {path.name for path in files}
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]
