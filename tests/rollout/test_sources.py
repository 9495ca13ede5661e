"""Which reward function the flags make, and that a failure is never a reward of 0."""

from __future__ import annotations

import json
import math
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from openrlhf.config.groups import RewardConfig
from openrlhf.rollout.rewards import RewardFailed, Rewards, ask_in_halves, call_reward_function, failed, joined
from openrlhf.rollout.sources import reward_function
from tests.rollout.server import says, serving

TEXTS = [f"{n}" for n in range(8)]
BAD = """
calls = []

def reward_func(queries, prompts, labels):
    calls.append(len(queries))
    if any(q in ("3", "6") for q in queries):
        raise KeyError("three or six")
    return {"rewards": [float(q) for q in queries], "extra_logs": {"calls": [len(calls)] * len(queries)}}
"""
FLAKY = """
calls = []

def reward_func(queries, prompts, labels):
    calls.append(1)
    if len(calls) == 1:
        raise RuntimeError("not yet")
    return [float(q) for q in queries]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "reward.py"
    path.write_text(BAD)
    return path


def ask(file: Path, isolated: bool, policy: str = "drop") -> Rewards:
    config = RewardConfig(remote_rm_url=str(file), on_reward_failure=policy, reward_timeout=60)
    function = reward_function(config, chunk=4, isolated=isolated)
    assert function is not None
    return call_reward_function(function, TEXTS, TEXTS, TEXTS)


def test_without_an_address_there_is_none() -> None:
    assert reward_function(RewardConfig(reward_pretrain="rm"), 4, isolated=True) is None


@pytest.mark.parametrize("isolated", [False, True])
def test_dropped_are_the_samples_at_fault_alone(file: Path, isolated: bool) -> None:
    answer = ask(file, isolated)
    assert answer.failures.keys() == {3, 6}
    assert all("KeyError: 'three or six'" in why for why in answer.failures.values())
    assert [r for i, r in enumerate(answer.rewards) if i not in (3, 6)] == [0, 1, 2, 4, 5, 7] == [
        s for i, s in enumerate(answer.scores) if i not in (3, 6)
    ]  # fmt: skip
    assert all(map(math.isnan, (answer.rewards[3], answer.scores[6], answer.extra_logs["calls"][3])))


def test_in_this_process_the_exception_comes_through_as_it_is(file: Path) -> None:
    with pytest.raises(KeyError, match="three or six"):
        ask(file, isolated=False, policy="stop")


def test_in_its_own_process_it_is_named_after_a_second_try(file: Path) -> None:
    with pytest.raises(RewardFailed, match=f"reward_func of {file}: it raised KeyError: 'three or six'"):
        ask(file, isolated=True, policy="stop")
    file.write_text(FLAKY)
    assert ask(file, isolated=True, policy="stop").rewards == [float(text) for text in TEXTS]


PLAIN = (
    "def reward_func(queries, prompts, labels):\n    return {'rewards': [int(q) for q in queries], 'scores': [1] * 8}\n"
)


@pytest.mark.parametrize("policy", ["stop", "drop"])
def test_a_file_and_servers_are_weighed_and_logged_apart(file: Path, policy: str) -> None:
    def tens(connection: socket.socket, asked: dict[str, Any]) -> None:
        says(json.dumps({"rewards": [10 + int(q) for q in asked["query"]]}))(connection, asked)

    if policy == "stop":
        file.write_text(PLAIN)
    with serving(tens) as one, serving(tens) as two:
        named = f"{file},{one.url},{two.url}"
        config = RewardConfig(
            remote_rm_url=named, on_reward_failure=policy, reward_timeout=60, reward_weights=(7.0, 0.5, 2.0)
        )
        function = reward_function(config, chunk=4, isolated=False)
        assert function is not None
        told = call_reward_function(function, TEXTS, TEXTS, TEXTS)
        assert [len(body["query"]) for body in (*one.asked, *two.asked)] == [4, 4]
    right = [n for n in range(8) if n not in told.failures]
    assert right == (list(range(8)) if policy == "stop" else [0, 1, 2, 4, 5, 7])  # the file raises at 3 and 6
    assert [told.rewards[n] for n in right] == [0.5 * n + 2 * (10 + n) for n in right]
    assert [told.extra_logs["file"][n] for n in right] == right
    assert told.extra_logs["server"] == [10.0 + n for n in range(8)]
    assert told.scores == [1.0] * 8 or policy == "drop"


def test_the_search_ends_in_time() -> None:
    asked = []

    def broken(queries, prompts, labels):
        asked.append(len(queries))
        raise RewardFailed("broken")

    answer = ask_in_halves(broken, TEXTS, TEXTS, TEXTS, until=time.monotonic() - 1)
    assert (asked, answer.failures) == ([8], dict.fromkeys(range(8), "broken"))
    asked.clear()
    answer = ask_in_halves(broken, TEXTS, TEXTS, TEXTS, until=time.monotonic() + 60)
    assert (len(asked), answer.failures) == (15, dict.fromkeys(range(8), "broken"))


def test_parts_become_a_whole() -> None:
    whole = joined([Rewards([1], [2], {"a": [3]}), failed(2, "why"), Rewards([4], [5], {"b": [6]})])
    assert (whole.rewards[0], whole.rewards[3], whole.scores[0], whole.scores[3]) == (1, 4, 2, 5)
    assert whole.failures == {1: "why", 2: "why"}
    assert whole.extra_logs["a"][0] == 3 and whole.extra_logs["b"][3] == 6
    assert [math.isnan(x) for x in whole.extra_logs["a"] + whole.extra_logs["b"]] == [False, *[True] * 6, False]


def test_dataclasses_of_a_file_work(file: Path) -> None:
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Rule:\n    weight: float = 2.0\n"
        "def reward_func(queries, prompts, labels):\n    return [Rule().weight] * len(queries)\n"
    )
    assert ask(file, isolated=False).rewards == [2.0] * 8
