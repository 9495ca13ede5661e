"""The commands of examples/gsm8k/run.sh as they stand, on sums in the form of GSM8K."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.shell import commands_of
from tests.recipes.helpers import column, run_in_turn, write_rows

SIZES = "PROBLEMS=16 SFT_EPOCHS=60 RL_EPISODES=64"


@pytest.mark.slow
def test_the_mathematics_reward_rises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [(a, b) for a in range(3, 7) for b in range(11, 15)]
    rows = [{"question": f"What is {a} + {b}?", "answer": f"{a} + {b} = {a + b}\n#### {a + b}"} for a, b in pairs]
    write_rows(tmp_path / "rows.jsonl", rows)
    commands = commands_of(f"{SIZES} examples/gsm8k/run.sh rows.jsonl out --local", tmp_path)
    monkeypatch.chdir(tmp_path)
    run_in_turn(commands)
    rewards, kl = column(tmp_path / "out/rl", "reward"), column(tmp_path / "out/rl", "kl")
    assert sum(rewards[-5:]) / 5 > sum(rewards[:2]) / 2 + 0.1
    assert 0 < max(kl) < 1
