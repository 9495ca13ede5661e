"""Whole runs as the certificate compares them, and that it notices what would set them apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from certificate.runs import COMMANDS, ahead_by_nothing, difference, prepared, resumed, run
from openrlhf.training import checkpoint_part, ppo


@pytest.mark.parametrize(
    "command", [pytest.param(name, marks=[] if name == "sft" else pytest.mark.slow) for name in COMMANDS]
)
def test_a_run_that_is_stopped_goes_on_as_if_it_were_not(command: str, tmp_path: Path) -> None:
    assert resumed(command, tmp_path, steps=[3]) == 0


def test_lost_random_numbers_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_part, "set_random_state", lambda state: None)
    assert resumed("sft", tmp_path, steps=[3]) > 0


@pytest.mark.slow
def test_asking_for_nothing_ahead_is_asking_in_turn(tmp_path: Path) -> None:
    assert ahead_by_nothing("ppo, groups", tmp_path) == 0


@pytest.mark.slow
def test_stale_samples_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ppo, "rollouts_ahead", lambda rollout: int(rollout.async_train))
    assert ahead_by_nothing("ppo, groups", tmp_path) > 0


def test_a_log_that_ends_early_is_noticed(tmp_path: Path) -> None:
    main, flags = prepared("sft", tmp_path)
    whole, short = (run(main, flags | epochs, tmp_path / name) for name, epochs in RUNS.items())
    assert difference(whole, whole) == 0
    assert difference(short, whole) == float("inf")


RUNS = {"whole": {"max_epochs": 2}, "short": {"max_epochs": 1}}
