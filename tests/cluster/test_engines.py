"""What the engines as one do when some of them are lost, with engines that are plain objects and calls without Ray."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray")
from ray.exceptions import RayTaskError

from openrlhf.cluster import engines as module
from openrlhf.cluster.calls import RoleDied, RoleError, Timed
from openrlhf.cluster.engines import Engines
from openrlhf.rollout.engine import EnginesLost, SamplingParams

pytestmark = pytest.mark.cluster


class Fake:
    """Answers ``generate`` with its own number and the prompts. ``fate`` → what happens instead."""

    def __init__(self, number: int, fate: Exception | None = None) -> None:
        self.number = number
        self.fate = fate
        self.heard: list[str] = []

    def answer(self, verb: str, args: tuple[Any, ...]) -> Any:
        self.heard.append(verb)
        if self.fate is not None:
            return self.fate
        return Timed([(self.number, prompt) for prompt in args[0]] if verb == "generate" else None, 1.0)


class Weights:
    def __init__(self, *dead: list[int]) -> None:
        self.dead = list(dead)
        self.renewed = 0

    def renew(self) -> list[int]:
        self.renewed += 1
        return self.dead.pop(0) if self.dead else []

    def send(self, version: int) -> list[int]:
        return self.renew()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited before engines were started again."""
    slept: list[float] = []

    def settle(
        refs: list[Any], names: list[str], verb: str, deadline_s: float, failed: Callable[[int, RoleError], Any]
    ) -> list[Any]:
        for place, outcome in enumerate(refs):
            if isinstance(outcome, RoleError):
                failed(place, outcome)
        return refs

    monkeypatch.setattr(module, "ask", lambda engine, verb, *args: engine.answer(verb, args))
    monkeypatch.setattr(module, "settle", settle)
    monkeypatch.setattr(module.ray, "kill", lambda engine: engine.heard.append("killed"))
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=slept.append))
    return slept


def fleet(fakes: list[Fake], weights: Weights, later: list[Fake]) -> Engines:
    """``later`` are the engines that are started in the place of others."""
    return Engines(fakes, ["engine 0", "engine 1"], lambda place: later.pop(0), weights, 100.0)  # type: ignore[arg-type]


def failed(cause: Exception) -> RoleError:
    """What Ray's call becomes when the engine's method raises ``cause``."""
    error = RoleError(f"engine failed: {cause}")
    error.__cause__ = RayTaskError("generate", "", cause)
    return error


@pytest.mark.parametrize("fate", [RoleDied("it died"), failed(RuntimeError("its core died")), TimeoutError("late")])
def test_only_what_a_lost_engine_was_asked_for_is_asked_again(fate: Exception, pauses: list[float]) -> None:
    whole, lost, weights = Fake(0), Fake(1, fate), Weights()
    engines = fleet([whole, lost], weights, [Fake(9)])
    answers = engines.generate([[1], [2], [3], [4]], SamplingParams())
    assert answers == [(0, [1]), (0, [2]), (9, [3]), (9, [4])]
    assert whole.heard == ["generate", "wake"] and lost.heard == ["generate", "killed"]
    assert engines.engines[1].heard == ["wake", "generate"]
    assert weights.renewed == 1 and pauses == [1.0]


def test_engines_that_die_while_they_are_brought_back_are_started_once_more(pauses: list[float]) -> None:
    weights = Weights([0])
    engines = fleet([Fake(0), Fake(1, RoleDied("it died"))], weights, [Fake(8), Fake(9)])
    assert engines.generate([[1], [2]], SamplingParams()) == [(0, [1]), (8, [2])]
    assert [engine.number for engine in engines.engines] == [9, 8]
    assert weights.renewed == 2 and pauses == [1.0, 4.0]
    engines.sleep()
    assert engines.failures == 0


def test_after_three_failures_in_a_row_the_engines_are_lost(pauses: list[float]) -> None:
    def broken() -> Fake:
        return Fake(1, RoleDied("engine 1 died of thirst"))

    engines = fleet([Fake(0), broken()], Weights(), [broken(), broken(), broken()])
    with pytest.raises(EnginesLost, match="died 3 times in a row, the last time engine 1: engine 1 died of"):
        engines.generate([[1], [2]], SamplingParams())
    assert pauses == [1.0, 4.0]


def test_input_that_an_engine_refuses_ends_the_run(pauses: list[float]) -> None:
    engines = fleet([Fake(0), Fake(1, failed(ValueError("the prompt is too long")))], Weights(), [])
    with pytest.raises(RoleError, match="the prompt is too long"):
        engines.generate([[1], [2]], SamplingParams())


def test_all_engines_are_put_to_sleep_again_when_one_died_of_it(pauses: list[float]) -> None:
    whole = Fake(0)
    engines = fleet([whole, Fake(1, RoleDied("it died"))], Weights(), [Fake(9)])
    engines.sleep()
    assert whole.heard == ["sleep", "wake", "sleep"]
    assert engines.engines[1].heard == ["wake", "sleep"]


def test_a_sync_in_which_an_engine_dies_is_made_again(pauses: list[float]) -> None:
    weights = Weights([1])
    engines = fleet([Fake(0), Fake(1)], weights, [Fake(9)])
    engines.sync(3)
    assert weights.renewed == 2 and engines.engines[1].number == 9
