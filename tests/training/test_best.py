"""The best model: kept when the metric rises, complete or absent, and never at the cost of the run."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from openrlhf.config.commands import PPOConfig, build
from openrlhf.training.best import keep_best
from openrlhf.training.roles import done

KEY = "eval_default_pass1"


class Writer:
    """An actor that writes the number of its save."""

    def __init__(self) -> None:
        self.saves = 0
        self.failure: str | None = None

    def save_state(self, state: Path | None, weights: Path | None) -> Future[str | None]:
        assert state is None and weights is not None
        self.saves += 1
        (weights / "model").write_text(str(self.saves))
        return done(self.failure)


@pytest.fixture
def config(tmp_path: Path) -> PPOConfig:
    given = {"pretrain": "p", "prompt_data": "d", "ckpt_path": str(tmp_path / "kept"), "best_metric_key": KEY}
    return build(PPOConfig, given)


def follow(values: list[float], config: PPOConfig, actor: Any, best: float | None = None) -> list[float | None]:
    seen = []
    for value in values:
        best = keep_best({KEY: value, "eval_default_pass4": 9.0}, best, actor, config, 60)
        seen.append(best)
    return seen


def test_it_is_saved_when_the_metric_rises(config: PPOConfig, tmp_path: Path) -> None:
    actor = Writer()
    assert follow([0.25, 0.5, 0.5, 0.25, 0.75, 0.5], config, actor) == [0.25, 0.5, 0.5, 0.5, 0.75, 0.75]
    assert (tmp_path / "kept" / "best" / "model").read_text() == "3"
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["best"]


def test_steps_without_an_evaluation_change_nothing(config: PPOConfig, tmp_path: Path) -> None:
    assert keep_best({}, None, Writer(), config, 60) is None
    assert keep_best({}, 0.5, Writer(), config, 60) == 0.5
    assert not (tmp_path / "kept").exists()


def test_a_run_that_goes_on_does_not_give_up_a_better_one(config: PPOConfig, tmp_path: Path) -> None:
    follow([0.5], config, Writer())
    later = Writer()
    assert follow([0.25], config, later, best=0.5) == [0.5]
    assert later.saves == 0
    (tmp_path / "kept" / "best").rename(tmp_path / "moved")  # then a worse one is better than none
    assert follow([0.25], config, later, best=0.5) == [0.25]


def test_a_disk_that_does_not_take_it_costs_the_folder_alone(
    config: PPOConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    actor = Writer()
    follow([0.25], config, actor)
    actor.failure = "No space left on device"
    assert follow([0.5], config, actor, best=0.25) == [0.25]
    assert (tmp_path / "kept" / "best" / "model").read_text() == "1"
    assert "--ckpt_path" in capsys.readouterr().out
    actor.failure = None
    assert follow([0.5], config, actor, best=0.25) == [0.5]
