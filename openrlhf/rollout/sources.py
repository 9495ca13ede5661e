"""Which reward function the flags ask for, and what becomes of its failures."""

from __future__ import annotations

import os
import time

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
    named = config.remote_rm_url
    if named is None:
        return None
    drop = config.on_reward_failure == "drop"
    return said(
        _function(named, config.reward_timeout, chunk, drop, isolated), f"the rewards of --remote_rm_url {named}"
    )


def _function(named: str, timeout_s: float, chunk: int, drop: bool, isolated: bool) -> RewardFunction:
    if not named.endswith(".py"):
        return http_rewards(named.split(","), chunk, timeout_s, drop, os.environ.get(TOKEN_VARIABLE))
    if isolated:
        function = IsolatedFunction(named, timeout_s)
        return dropping(function, timeout_s) if drop else once_more(function)
    here = load_reward_function(named)
    return dropping(failing(here), timeout_s) if drop else here


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
