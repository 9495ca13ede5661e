"""A trivial reward, for both programs: the share of words ``w…`` that end in an even digit."""

from __future__ import annotations


def reward_func(queries: list[str], prompts: list[str], labels: list[str]) -> list[float]:
    return [even_share(query) for query in queries]


def even_share(text: str) -> float:
    words = text.split()
    return sum(word[-1] in "02468" for word in words) / len(words)
