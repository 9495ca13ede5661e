"""Rewards of a batch: what a reward function is asked, what it may answer, and the user's file that defines one.

A reward function takes queries, prompts and labels, one entry a sample. In ``rollout/sources.py`` one is made of the
flags: the function of a file, in this process or in one that can be killed, or an HTTP server.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import logging
import math
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

RewardFunction = Callable[..., Any]
Texts = Sequence[str]


class RewardFailed(ValueError):
    """No rewards, and why; a failure is never a reward of 0."""


@dataclass
class Rewards:
    """One entry a sample. ``scores`` are the rewards when the function gives none of its own.

    ``failures`` are the samples without a reward: place → why. Their entries are NaN, as those of ``extra_logs`` that
    a sample does not have.
    """

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)


def load_reward_function(file: str) -> RewardFunction:
    """``reward_func`` of a Python file. What the file itself raises comes through.

    Raises RewardFailed when the file or the function is missing.
    """
    defined = run_user_file(file, "--remote_rm_url", "reward_func")
    function = defined.get("reward_func")
    if not callable(function):
        other = [name for name, value in defined.items() if inspect.isfunction(value)]
        instead = f", not {' and '.join(other)}" if other else ""
        raise RewardFailed(
            f"--remote_rm_url {file}: the file must define reward_func(queries, prompts, labels){instead}"
        )
    return function


def run_user_file(file: str, flag: str, content: str) -> dict[str, Any]:
    """What the Python file of ``flag`` defines, by name. Raises RewardFailed when there is none."""
    path = Path(file)
    spec = importlib.util.spec_from_file_location(f"file_of_{flag.strip('-')}_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise RewardFailed(f"{flag} {file}: no such Python file; give the path of a file with {content}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and pickle look for it
    spec.loader.exec_module(module)
    return vars(module)


def call_reward_function(function: RewardFunction, queries: Texts, prompts: Texts, labels: Texts) -> Rewards:
    """Rewards for ``queries`` (prompt + response). The answer may be a tensor, a list, or a dict with ``rewards`` and,
    if wanted, ``scores`` and ``extra_logs``; an async function is waited for.

    Raises RewardFailed naming the function and the value when the answer has the wrong length, a NaN or another type.
    """
    answer = function(list(queries), list(prompts), list(labels))
    if inspect.isawaitable(answer):
        answer = asyncio.run(_awaited(answer))
    return answer if isinstance(answer, Rewards) else as_rewards(answer, len(queries))


def as_rewards(answer: Any, count: int) -> Rewards:
    """Check the answer of a reward function for ``count`` samples. Raises RewardFailed."""
    parts = answer if isinstance(answer, dict) else {"rewards": answer}
    if "rewards" not in parts:
        raise RewardFailed(f"reward_func returned a dict with the keys {sorted(parts)}; it must have 'rewards'")
    rewards = _floats("rewards", parts["rewards"], count)
    scores = rewards if parts.get("scores") is None else _floats("scores", parts["scores"], count)
    logs = parts.get("extra_logs") or {}
    if not isinstance(logs, Mapping):
        raise RewardFailed(f"reward_func: extra_logs must be a dict of lists, not {logs!r:.200}")
    return Rewards(rewards, scores, {name: _floats(name, values, count) for name, values in logs.items()})


def failed(count: int, why: str) -> Rewards:
    """``count`` samples without a reward."""
    return Rewards([math.nan] * count, [math.nan] * count, {}, dict.fromkeys(range(count), why))


def tell_failures(failures: Mapping[int, str], count: int) -> None:
    """Warn of those of ``count`` samples that have no reward. Raises RewardFailed when none has one."""
    if not failures:
        return
    why = next(iter(failures.values()))
    if len(failures) == count:
        raise RewardFailed(f"none of {count} samples got a reward: {why}")
    log.warning("%d of %d samples got no reward and are left out: %s", len(failures), count, why)


def joined(parts: Sequence[Rewards]) -> Rewards:
    """The rewards of consecutive parts of a batch as those of the whole."""
    whole = Rewards([], [])
    for part in parts:
        before, count = len(whole.rewards), len(part.rewards)
        for name in {**whole.extra_logs, **part.extra_logs}:
            values = whole.extra_logs.setdefault(name, [math.nan] * before)
            values += part.extra_logs.get(name, [math.nan] * count)
        whole.rewards += part.rewards
        whole.scores += part.scores
        whole.failures |= {before + place: why for place, why in part.failures.items()}
    return whole


def ask_in_halves(function: RewardFunction, queries: Texts, prompts: Texts, labels: Texts, until: float) -> Rewards:
    """Rewards with as few failures as can be: after a failure each half is asked again, down to single samples, or
    until the time ``until`` of the monotonic clock."""
    try:
        return call_reward_function(function, queries, prompts, labels)
    except RewardFailed as failure:
        count = len(queries)
        if count == 1 or time.monotonic() > until:
            return failed(count, str(failure))
        halves = (slice(None, count // 2), slice(count // 2, None))
        return joined([ask_in_halves(function, queries[h], prompts[h], labels[h], until) for h in halves])


async def _awaited(answer: Awaitable[Any]) -> Any:
    return await answer


def _floats(name: str, values: Any, count: int) -> list[float]:
    wrong = f"reward_func: {name} must be {count} numbers, not {values!r:.200}"
    if isinstance(values, str | bytes | Mapping):  # of which float would read the characters or the keys
        raise RewardFailed(wrong)
    try:
        given = list(values)
        numbers = [float(v) for v in given]
    except (TypeError, ValueError) as error:
        raise RewardFailed(wrong) from error
    if any(isinstance(v, str | bytes) for v in given):
        raise RewardFailed(wrong)
    if len(numbers) != count:
        raise RewardFailed(f"reward_func: {name} has {len(numbers)} entries for {count} samples: {values!r:.200}")
    for i, number in enumerate(numbers):
        if not math.isfinite(number):
            raise RewardFailed(f"reward_func: {name}[{i}] is {number}; every entry must be a finite number")
    return numbers
