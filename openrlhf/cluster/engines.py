"""Several vLLM engines as one rollout engine, which outlives the death of its parts."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ray
from ray.exceptions import RayTaskError
from torch import Tensor

from openrlhf.cluster.calls import RoleDied, RoleError, Timed, ask, ask_aside, settle
from openrlhf.cluster.weight_sync import WeightSync
from openrlhf.rollout.engine import Completion, EnginesLost, SamplingParams, divided

MOST_FAILURES = 3  # times in a row that engines died before an answer was there
FIRST_PAUSE_S = 1.0  # before engines are started again; four times as long each time


class Engines:
    """The prompts are divided evenly, in order.

    Engines that die or fail are started again on their places and get the actor's weights, and what they were asked for
    is asked again. Samples are seeded one by one, so they come out the same. Raises EnginesLost when that happens
    ``MOST_FAILURES`` times in a row.
    """

    def __init__(
        self,
        engines: list[Any],
        names: Sequence[str],
        start: Callable[[int], Any],
        weights: WeightSync,
        deadline_s: float,
        worked: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """``start`` starts the engine with a number, ``weights`` has the same list of engines. ``worked`` hears how
        long each call kept the slowest engine busy."""
        self.engines = engines
        self.names = list(names)
        self.start = start
        self.weights = weights
        self.deadline_s = deadline_s
        self.worked = worked
        self.failures = 0  # in a row

    def meet(self) -> None:
        """Wait until all of them have started, and bring them and the actor together. Raises RoleDied."""
        dead, why = self._awake()
        if dead or (dead := self.weights.meet()):
            raise RoleDied(why or f"{self.names[dead[0]]} died in the meeting for the weight transfer")

    def generate(self, prompts: list[list[int]], params: SamplingParams | Sequence[SamplingParams]) -> list[Completion]:
        parts = self._call("generate", divided(prompts, params, len(self.engines)))
        return [completion for part in parts for completion in part]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Slow: through the object store. Runs use ``sync``."""
        held = ray.put(list(weights))
        self._call("load_weights", [(held, version)] * len(self.engines))

    def sync(self, version: int) -> None:
        """Every engine holds the actor's weights as ``version`` when this returns."""
        if dead := self.weights.send(version):
            self._replace(dead, "died in the weight sync")
        self.failures = 0

    def interrupt(self) -> None:
        """Let ``generate``, which another thread called, return with what there is, now and until ``resume``."""
        self._call_aside("interrupt")

    def resume(self) -> None:
        self._call_aside("resume")

    def sleep(self) -> None:
        self._call("sleep", [()] * len(self.engines))

    def wake(self) -> None:
        self._call("wake", [()] * len(self.engines))

    def _call_aside(self, verb: str) -> None:
        """Of engines that are at work. Those that are dead are the business of what they were at work on."""
        refs = [ask_aside(engine, verb) for engine in self.engines]
        settle(refs, self.names, verb, self.deadline_s, lambda place, error: None)

    def _call(self, verb: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        answers: dict[int, Any] = {}
        while len(answers) < len(self.engines):
            asked = [place for place in range(len(self.engines)) if place not in answers]
            refs = [ask(self.engines[place], verb, *arguments[place]) for place in asked]
            outcomes = settle(refs, [self.names[place] for place in asked], verb, self.deadline_s, self._failed)
            there = {place: outcome for place, outcome in zip(asked, outcomes, strict=True) if _is_answer(outcome)}
            answers |= {place: outcome.value for place, outcome in there.items()}
            self.worked(max((outcome.seconds for outcome in there.values()), default=0.0))
            if lost := [outcome for outcome in outcomes if not _is_answer(outcome)]:
                self._replace([place for place in asked if place not in answers], str(lost[0]))
                if verb != "generate":  # now all of them are awake and have the same weights
                    answers.clear()
        self.failures = 0
        return [answers[place] for place in range(len(self.engines))]

    def _failed(self, place: int, error: RoleError) -> None:
        """Engines beside one that is lost go on. Input that one refuses, another would refuse too."""
        if isinstance(error.__cause__, RayTaskError) and isinstance(error.__cause__.cause, ValueError):
            raise error

    def _replace(self, dead: list[int], why: str) -> None:
        """Start engines on the places of dead ones, and bring all of them to the actor's weights."""
        while dead:
            self.failures += 1
            lost = ", ".join(self.names[place] for place in dead)
            if self.failures >= MOST_FAILURES:
                raise EnginesLost(f"vLLM engines died {MOST_FAILURES} times in a row, the last time {lost}: {why}")
            time.sleep(FIRST_PAUSE_S * 4 ** (self.failures - 1))
            for place in dead:
                ray.kill(self.engines[place])
                self.engines[place] = self.start(place)
            print(f"starting {lost} again: {why}", file=sys.stderr)  # not where the run has ended, which start knows
            dead, why = self._awake()
            if not dead:
                dead, why = self.weights.renew(), "died in the weight sync"

    def _awake(self) -> tuple[list[int], str]:
        """Wait until all of them have started and are awake; the places of those that died instead, and why."""
        refs = [ask(engine, "wake") for engine in self.engines]
        outcomes = settle(refs, self.names, "its start", self.deadline_s, self._failed)
        lost = {place: outcome for place, outcome in enumerate(outcomes) if not _is_answer(outcome)}
        return list(lost), str(next(iter(lost.values()), ""))


def _is_answer(outcome: Any) -> bool:
    return isinstance(outcome, Timed)
