"""The commands of examples/preferences/run.sh as they stand, on pairs whose better answers say yes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.docs.shell import commands_of
from tests.recipes.helpers import column, run_in_turn, write_rows

SIZES = "SFT_EPOCHS=20 RM_EPOCHS=4 RL_PROMPTS=32 RL_EPISODES=6"


@pytest.mark.slow
def test_the_policy_learns_what_the_reward_model_has_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kinds of word are in the better answers, which the policy starts from; the worse ones have only no."""
    draw = random.Random(0)
    answers = [" ".join(draw.choice(["yes", "no"]) for _ in range(12)) for _ in range(32)]
    pairs = [
        {"prompt": f"Shall we take the {i}. way?", "chosen": answer, "rejected": answer.replace("yes", "no", 5)}
        for i, answer in enumerate(answers)
    ]
    write_rows(tmp_path / "pairs.json", pairs)
    script = f"{SIZES} examples/preferences/run.sh pairs.json out --local"
    commands = commands_of(script, tmp_path)
    monkeypatch.chdir(tmp_path)
    run_in_turn(commands)
    assert column(tmp_path / "out/rm", "eval_accuracy")[-1] == 1
    rewards, kl = column(tmp_path / "out/rl", "reward"), column(tmp_path / "out/rl", "kl")
    assert sum(rewards[-4:]) / 4 > sum(rewards[:2]) / 2 + 0.4
    assert 0 < kl[-1] < 1
