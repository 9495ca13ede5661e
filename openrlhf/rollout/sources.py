"""Which reward function the flags ask for, and what becomes of its failures."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence

from openrlhf.config.derived import reward_sources
from openrlhf.config.groups import RewardConfig
from openrlhf.rollout.http import http_rewards
from openrlhf.rollout.isolated import IsolatedFunction
from openrlhf.rollout.rewards import (
    RewardFailed,
    RewardFunction,
    Rewards,
    Texts,
    ask_in_halves,
    call_reward_function,
    load_reward_function,
)
from openrlhf.rollout.waiting import waiting

TOKEN_VARIABLE = "OPENRLHF_RM_TOKEN"
SEARCH = 3  # times --reward_timeout in which the samples at fault are looked for


def reward_function(config: RewardConfig, chunk: int, isolated: bool) -> RewardFunction | None:
    """What ``--remote_rm_url`` names, or None where a reward model alone gives the rewards.

    ``chunk`` samples go into one HTTP request. The function of a file runs in this process, where a debugger sees it,
    or ``isolated`` in one that can be killed. Raises ValueError when the file has no such function.
    """
    file, servers = reward_sources(config)
    drop, parts = config.on_reward_failure == "drop", {}
    if file is not None:
        function = _of_file(file, config.reward_timeout, drop, isolated)
        parts["file"] = said(function, f"the rewards of --remote_rm_url {file}")
    if servers:
        function = http_rewards(servers, chunk, config.reward_timeout, drop, os.environ.get(TOKEN_VARIABLE))
        parts["server"] = said(function, f"the rewards of --remote_rm_url {','.join(servers)}")
    if len(parts) > 1:
        return summed(parts, (config.reward_weights or ())[-len(parts) :])
    return next(iter(parts.values()), None)


def _of_file(file: str, timeout_s: float, drop: bool, isolated: bool) -> RewardFunction:
    if isolated:
        function = IsolatedFunction(file, timeout_s)
        return dropping(function, timeout_s) if drop else once_more(function)
    here = load_reward_function(file)
    return dropping(failing(here), timeout_s) if drop else here


def summed(parts: Mapping[str, RewardFunction], weights: Sequence[float]) -> RewardFunction:
    """The weighted sum of several, each of them logged under its name. Scores are those of the first. A sample that one
    of them fails has no reward."""

    def ask(queries: Texts, prompts: Texts, labels: Texts) -> Rewards:
        answers = {name: call_reward_function(part, queries, prompts, labels) for name, part in parts.items()}
        each = zip(*(answer.rewards for answer in answers.values()), strict=True)
        rewards = [sum(w * reward for w, reward in zip(weights, of_sample, strict=True)) for of_sample in each]
        whole = Rewards(rewards, next(iter(answers.values())).scores)
        for name, answer in answers.items():
            whole.extra_logs |= {**answer.extra_logs, name: answer.rewards}
            whole.failures |= answer.failures
        return whole

    return ask


def said(function: RewardFunction, what: str) -> RewardFunction:
    """``function``, of which a line says when it takes long."""

    def ask(queries: Texts, prompts: Texts, labels: Texts) -> Rewards:
        with waiting(what):
            return call_reward_function(function, queries, prompts, labels)

    return ask


def once_more(function: RewardFunction) -> RewardFunction:
    """``function``, asked a second time when it fails."""

    def ask(queries: Texts, prompts: Texts, labels: Texts) -> Rewards:
        try:
            return call_reward_function(function, queries, prompts, labels)
        except RewardFailed:
            return call_reward_function(function, queries, prompts, labels)

    return ask


def dropping(function: RewardFunction, timeout_s: float) -> RewardFunction:
    """``function``, which after a failure finds the samples at fault and says so of them alone."""

    def ask(queries: Texts, prompts: Texts, labels: Texts) -> Rewards:
        return ask_in_halves(function, queries, prompts, labels, time.monotonic() + SEARCH * timeout_s)

    return ask


def failing(function: RewardFunction) -> RewardFunction:
    """``function``, whose exceptions are RewardFailed."""

    def ask(queries: Texts, prompts: Texts, labels: Texts) -> Rewards:
        try:
            return call_reward_function(function, queries, prompts, labels)
        except RewardFailed:
            raise
        except Exception as error:
            raise RewardFailed(f"reward_func raised {type(error).__name__}: {error}") from error

    return ask
