"""The demo's problems: adding two-digit numbers, answered in two styles.

Most of the world guesses: it writes the sum digit by digit and forgets every carry, so it is right on about a quarter
of the problems. The rest works it out and is right. Imitation learns both; only a reward tells them apart.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

CARELESS_SHARE = 0.65
Problem = tuple[int, int]


def problems() -> list[Problem]:
    return [(a, b) for a in range(10, 100) for b in range(10, 100)]


def question(problem: Problem) -> str:
    return f"{problem[0]}+{problem[1]}="


def careful(problem: Problem) -> str:
    """Units, then tens with the carry, then the answer: ``7+5=12;4+8+1=13#132``."""
    (a1, a0), (b1, b0) = divmod(problem[0], 10), divmod(problem[1], 10)
    units = a0 + b0
    tens = a1 + b1 + units // 10
    return f"{a0}+{b0}={units};{a1}+{b1}+{units // 10}={tens}#{sum(problem)}"


def careless(problem: Problem) -> str:
    """The answer at once, carries forgotten."""
    (a1, a0), (b1, b0) = divmod(problem[0], 10), divmod(problem[1], 10)
    return f"#{(a1 + b1) % 10}{(a0 + b0) % 10}"


def write_data(folder: Path, seed: int, demonstrations: int, held_out: int) -> None:
    """``sft.jsonl`` (input, output), ``prompts.jsonl`` and ``held_out.jsonl`` (input, label); no problem is in both
    of the first two and the third."""
    rng = random.Random(seed)
    everything = problems()
    rng.shuffle(everything)
    kept, training = everything[:held_out], everything[held_out:]
    shown = [rng.choice(training) for _ in range(demonstrations)]
    _write(
        folder / "sft.jsonl",
        [{"input": question(p), "output": careless(p) if rng.random() < CARELESS_SHARE else careful(p)} for p in shown],
    )
    _write(folder / "prompts.jsonl", [{"input": question(p), "label": str(sum(p))} for p in training])
    _write(folder / "held_out.jsonl", [{"input": question(p), "label": str(sum(p))} for p in kept])


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
