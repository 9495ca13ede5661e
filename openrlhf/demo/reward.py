"""The demo's reward file, given to ``--remote_rm_url``: 1 for the right sum after ``#``, else 0."""

from __future__ import annotations


def reward_func(queries: list[str], prompts: list[str], labels: list[str]) -> list[float]:
    return [float(answer(query) == label) for query, label in zip(queries, labels, strict=True)]


def answer(text: str) -> str:
    """What stands between the last ``#`` and the end-of-text token; empty without a ``#``."""
    _, mark, rest = text.rpartition("#")
    return rest.split("<")[0].strip() if mark else ""
