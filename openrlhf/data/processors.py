"""Answers with rewards → rows to train on. Rows are {input, output, reward}; rewards are finite."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from typing import Any

Scored = dict[str, Any]

REWARD_TEMPLATE = "{input} <rm_score>: {reward} "


def best_answers(rows: Sequence[Scored]) -> list[Scored]:
    """The row with the highest reward of each input, for rejection sampling. Inputs in the order of their first row;
    of equal rewards the first."""
    return [max(group, key=_reward) for group in by_input(rows)]


def conditioned(rows: Sequence[Scored], template: str | None = None, normalize: bool = False) -> list[Scored]:
    """The same rows with the reward in the input, for conditional SFT (arXiv:2308.12050).

    ``template`` holds ``{input}`` and ``{reward}``, which is written with two decimals. ``normalize`` standardises the
    rewards first, by the unbiased standard deviation over all rows.

    Raises ValueError when there is nothing to normalise by.
    """
    rewards = standardised([_reward(row) for row in rows]) if normalize else [_reward(row) for row in rows]
    text = template or REWARD_TEMPLATE
    return [
        {**row, "input": _filled(text, row["input"], reward), "reward": reward}
        for row, reward in zip(rows, rewards, strict=True)
    ]


def best_and_worst(rows: Sequence[Scored]) -> tuple[list[Scored], int]:
    """{prompt, chosen, chosen_reward, rejected, rejected_reward} of each input, and how many inputs give none.

    An input gives none where its best and its worst answer are the same text or have the same reward: there is
    nothing to prefer.
    """
    groups = by_input(rows)
    ends = [(max(group, key=_reward), min(group, key=_reward)) for group in groups]
    pairs = [
        {
            "prompt": best["input"],
            "chosen": best["output"],
            "chosen_reward": best["reward"],
            "rejected": worst["output"],
            "rejected_reward": worst["reward"],
        }
        for best, worst in ends
        if best["output"] != worst["output"] and best["reward"] > worst["reward"]
    ]
    return pairs, len(groups) - len(pairs)


def by_input(rows: Sequence[Scored]) -> list[list[Scored]]:
    """The rows of each input, inputs in the order of their first row."""
    groups: dict[str, list[Scored]] = {}
    for row in rows:
        groups.setdefault(row["input"], []).append(row)
    return list(groups.values())


def standardised(rewards: Sequence[float]) -> list[float]:
    """(reward − mean) / unbiased standard deviation. Raises ValueError when that is 0 or there is one reward."""
    mean, std = statistics.fmean(rewards), statistics.stdev(rewards) if len(rewards) > 1 else 0.0
    if std == 0:
        raise ValueError(
            f"--normalize_reward: the {len(rewards)} rewards do not differ, so they have no spread to divide by; "
            "leave it out"
        )
    return [(reward - mean) / std for reward in rewards]


def _reward(row: Scored) -> float:
    return float(row["reward"])


def _filled(template: str, prompt: str, reward: float) -> str:
    # In one pass: a prompt may hold the word {reward} itself.
    values = {"{input}": prompt, "{reward}": f"{reward:.2f}"}
    return re.sub(r"\{input\}|\{reward\}", lambda found: values[found[0]], template)
