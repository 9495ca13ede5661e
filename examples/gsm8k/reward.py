"""Pays for the form of a GSM8K answer: 1 when it ends in a line ``#### <number>``, 0.2 when it names one earlier.

``scores`` say whether the number is right, which a tiny model will hardly ever be.
"""

from __future__ import annotations

import re

FINAL_LINE = re.compile(r"####\s*(-?[\d,]+)\s*$")
ANY_LINE = re.compile(r"####\s*-?\d")


def reward_func(queries: list[str], prompts: list[str], labels: list[str]) -> dict[str, object]:
    responses = [query[len(prompt) :] for query, prompt in zip(queries, prompts, strict=True)]
    found = [FINAL_LINE.search(without_special_tokens(response)) for response in responses]
    formed = [float(match is not None) for match in found]
    hinted = [0.2 * float(ANY_LINE.search(response) is not None) for response in responses]
    right = [
        float(match is not None and number(match.group(1)) == number(label.rpartition("####")[2]))
        for match, label in zip(found, labels, strict=True)
    ]
    return {
        "rewards": [max(pair) for pair in zip(formed, hinted, strict=True)],
        "scores": right,
        "extra_logs": {"well_formed": formed},
    }


def without_special_tokens(response: str) -> str:
    return re.sub(r"(<\|[^|>]*\|>)+$", "", response)


def number(text: str) -> str:
    return text.strip().replace(",", "")
