"""Engines or rewards that cannot be had any more end a run, and not what it has learnt."""

from __future__ import annotations

import os
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from openrlhf.backends.local_roles import LocalRollout
from openrlhf.cli.train_ppo_ray import main
from openrlhf.rollout.engine import EnginesLost
from openrlhf.rollout.rewards import RewardFailed
from openrlhf.training.checkpoint_files import verify
from tests.recipes.helpers import metrics, words, write_rows


@pytest.mark.slow
@pytest.mark.parametrize("failure", [EnginesLost("vLLM engines died 3 times in a row"), RewardFailed("no rewards")])
def test_what_was_learnt_is_saved(
    failure: Exception, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """They fail in the rollout of step 3, and no checkpoint was due before."""
    collect, calls = LocalRollout.collect, []

    def failing(self: LocalRollout, *args: Any) -> Future[Any]:
        calls.append(args)
        if len(calls) < 3:
            return collect(self, *args)
        future: Future[Any] = Future()
        future.set_exception(failure)
        return future

    monkeypatch.setattr(LocalRollout, "collect", failing)
    (tmp_path / "reward.py").write_text("def reward_func(queries, prompts, labels):\n    return [1.0] * len(queries)\n")
    flags = {
        "local": True, "pretrain": tiny_folder, "remote_rm_url": tmp_path / "reward.py",
        "advantage_estimator": "reinforce", "init_kl_coef": 0, "generate_max_len": 4,
        "prompt_data": write_rows(tmp_path / "p.jsonl", [{"input": f"say {i}"} for i in range(8)]),
        "rollout_batch_size": 2, "train_batch_size": 2, "micro_train_batch_size": 2, "save_steps": 100,
        "save_path": tmp_path / "out", "ckpt_path": tmp_path / "ckpt",
    }  # fmt: skip
    monkeypatch.setattr(os, "_exit", sys.exit)  # this is the process of the tests
    with pytest.raises(SystemExit) as stop:
        main(words(flags))
    assert stop.value.code == 3  # with --max_restarts it starts again by itself
    folder = tmp_path / "ckpt" / "global_step2"
    way_on = f"The same command with --load_checkpoint goes on from {folder}."
    assert capsys.readouterr().err.strip().endswith(f"in the phase rollout after step 2: {failure}. {way_on}")
    assert verify(folder).step == 2
    assert [line["step"] for line in metrics(tmp_path / "out")] == [1, 2]
