"""A reward file: the share of letters and digits among the characters of the answer."""

from __future__ import annotations


def reward_func(queries: list[str], prompts: list[str], labels: list[str]) -> list[float]:
    return [share(query[len(prompt) :]) for query, prompt in zip(queries, prompts, strict=True)]


def share(answer: str) -> float:
    return sum(c.isascii() and c.isalnum() for c in answer) / max(1, len(answer))
