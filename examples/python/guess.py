"""An environment: the policy guesses a number from 1 to 4 and is told ``higher`` or ``lower``, up to three times.

The label of a prompt is its number. A hit pays 1, a guess that cannot be right after what was said costs 0.5, and a
turn that is no number costs 1 and ends the game. Guessing blindly hits in 58 of 100 games; whoever listens always.
"""

from __future__ import annotations

from typing import Any

AGENT_CONTRACT = 1
GUESSES = 3
NUMBERS = ("1", "2", "3", "4")


class AgentInstance:
    """One game."""

    def __init__(self) -> None:
        self.guesses = 0
        self.possible = {int(number) for number in NUMBERS}

    async def reset(self, states: dict[str, Any]) -> dict[str, Any]:
        return {"observation": states["observation"]}

    async def step(self, states: dict[str, Any]) -> dict[str, Any]:
        self.guesses += 1
        said = states["action_text"].removesuffix("<|im_end|>").strip()
        if said not in NUMBERS:
            return {"rewards": -1.0, "scores": 0.0, "done": True, "extra_logs": {"no_number": 1.0}}
        number, guess = int(states["label"]), int(said)
        hit, foolish = guess == number, guess not in self.possible
        self.possible = {n for n in self.possible if (n > guess if number > guess else n < guess)}
        return {
            "rewards": 1.0 if hit else -0.5 * foolish,
            "scores": float(hit),
            "environment_feedback": " higher: " if number > guess else " lower: ",
            "done": hit or self.guesses == GUESSES,
            "extra_logs": {"no_number": 0.0},
        }
