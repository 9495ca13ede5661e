"""Rewards from a Python file: the user's ``reward_func(queries, prompts, labels)``."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RewardFunction = Callable[..., Any]


@dataclass
class Rewards:
    """One entry a sample. ``scores`` are the rewards when the function gives none of its own."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]] = field(default_factory=dict)


def load_reward_function(file: str) -> RewardFunction:
    """``reward_func`` of a Python file. Raises ValueError when the file or the function is missing."""
    path = Path(file)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ValueError(f"--remote_rm_url {file}: no such Python file; give the path of a file with reward_func")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = vars(module).get("reward_func")
    if not callable(function):
        raise ValueError(f"--remote_rm_url {file}: the file must define reward_func(queries, prompts, labels)")
    return function


def call_reward_function(
    function: RewardFunction, queries: Sequence[str], prompts: Sequence[str], labels: Sequence[str]
) -> Rewards:
    """Rewards for ``queries`` (prompt + response). The answer may be a tensor, a list, or a dict with ``rewards`` and,
    if wanted, ``scores`` and ``extra_logs``.

    Raises ValueError naming the function and the value when the answer has the wrong length, a NaN or another type.
    """
    answer = function(list(queries), list(prompts), list(labels))
    parts = answer if isinstance(answer, dict) else {"rewards": answer}
    if "rewards" not in parts:
        raise ValueError(f"reward_func returned a dict with the keys {sorted(parts)}; it must have 'rewards'")
    rewards = _floats("rewards", parts["rewards"], len(queries))
    scores = rewards if parts.get("scores") is None else _floats("scores", parts["scores"], len(queries))
    extra = {name: _floats(name, values, len(queries)) for name, values in (parts.get("extra_logs") or {}).items()}
    return Rewards(rewards, scores, extra)


def _floats(name: str, values: Any, count: int) -> list[float]:
    try:
        numbers = [float(v) for v in values]
    except (TypeError, ValueError) as error:
        raise ValueError(f"reward_func: {name} must be {count} numbers, not {values!r:.200}") from error
    if len(numbers) != count:
        raise ValueError(f"reward_func: {name} has {len(numbers)} entries for {count} samples")
    for i, number in enumerate(numbers):
        if not math.isfinite(number):
            raise ValueError(f"reward_func: {name}[{i}] is {number}; every entry must be a finite number")
    return numbers
