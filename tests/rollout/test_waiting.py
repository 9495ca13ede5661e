"""Lines that say what is waited for."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from openrlhf.config.groups import RewardConfig
from openrlhf.rollout import waiting
from openrlhf.rollout.sources import reward_function
from openrlhf.training.roles import gather

PATIENT = """
import time
from pathlib import Path

def reward_func(queries, prompts, labels):
    while Path(labels[0]).exists():
        time.sleep(0.01)
    return [1.0] * len(queries)
"""


def test_rewards_that_are_long_in_coming_are_told_and_named_at_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(waiting, "SAY_S", 0.01)
    file, hold = tmp_path / "reward.py", tmp_path / "hold"
    file.write_text(PATIENT)
    hold.touch()
    function = reward_function(RewardConfig(remote_rm_url=str(file)), chunk=1, isolated=False)
    assert function is not None
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(function(["q"], ["p"], [str(hold)])))
    thread.start()
    told, until = "", time.monotonic() + 60
    while told.count("waiting for ") < 2 and time.monotonic() < until:
        told += capsys.readouterr().err
    assert f"waiting for the rewards of --remote_rm_url {file} for 0 s\n" in told
    late = rf"1 of 1 calls did not answer within 0 s, waiting for the rewards of --remote_rm_url {file} for \d+ s"
    with pytest.raises(TimeoutError, match=late):
        gather(Future(), deadline_s=0.0)
    hold.unlink()
    thread.join(timeout=60)
    assert answers[0].rewards == [1.0]
    assert waiting.waited_for() == ""


def test_nothing_is_said_of_what_comes_soon(capsys: pytest.CaptureFixture[str]) -> None:
    with waiting.waiting("a moment"):
        assert waiting.waited_for() == "a moment for 0 s"
    assert capsys.readouterr().err == ""
