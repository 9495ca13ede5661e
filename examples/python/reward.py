"""A reward file for ``--remote_rm_url examples/python/reward.py``: is the last number of the response the label?

The function gets a list of each, one entry a sample: ``queries`` (prompt and response, special tokens kept),
``prompts`` and ``labels`` (the column of ``--label_key``). It returns a number a sample, or a dict with ``rewards``
and, if wanted, ``scores`` (0 to 1, logged, never trained on) and ``extra_logs`` (name → a number a sample).
"""

from __future__ import annotations

import re

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
LONG = 400  # characters


def reward_func(queries: list[str], prompts: list[str], labels: list[str]) -> dict[str, object]:
    responses = [query.removeprefix(prompt) for query, prompt in zip(queries, prompts, strict=True)]
    right = [float(last_number(text) == last_number(label)) for text, label in zip(responses, labels, strict=True)]
    long = [float(len(text) > LONG) for text in responses]
    return {
        "rewards": [r - 0.2 * too_long for r, too_long in zip(right, long, strict=True)],
        "scores": right,
        "extra_logs": {"long": long},
    }


def last_number(text: str) -> float | None:
    found = NUMBER.findall(text.replace(",", ""))
    return float(found[-1]) if found else None
