"""Responses that are broken off for new weights: what there is stays, and the rest is asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from openrlhf.rollout.engine import Completion, RolloutEngine, SamplingParams, params_of_each, request_seed
from openrlhf.rollout.stop_strings import Decode, ends, reach

Ask = Callable[[list[list[int]], list[SamplingParams]], list[Completion]]


class Interruptible(RolloutEngine, Protocol):
    def interrupt(self) -> None:
        """From another thread: let ``generate`` return with what there is, now and until ``resume``."""
        ...

    def resume(self) -> None: ...


class PartialEngine:
    """``engine``, whose responses are whole again, and may be of several versions of the weights."""

    def __init__(self, engine: Interruptible, deadline_s: float, decode: Decode) -> None:
        """``deadline_s`` is the longest that a generation waits for a sync."""
        self.engine = engine
        self.deadline_s = deadline_s
        self.decode = decode
        self._going = threading.Event()  # unset while a sync wants the engine
        self._going.set()
        self._used = threading.Lock()

    def generate(self, prompts: list[list[int]], params: SamplingParams | Sequence[SamplingParams]) -> list[Completion]:
        return finished(self._ask, prompts, params, self.decode)

    @contextmanager
    def interrupted(self) -> Iterator[None]:
        """Inside, nothing is generated. What was under way goes on afterwards, with the weights that came meanwhile."""
        self._going.clear()
        try:
            self.engine.interrupt()
            with self._used:
                try:
                    yield
                finally:
                    self.engine.resume()
        finally:
            self._going.set()

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        with self.interrupted():
            self.engine.load_weights(weights, version)

    def sleep(self) -> None:
        self.engine.sleep()

    def wake(self) -> None:
        self.engine.wake()

    def _ask(self, prompts: list[list[int]], params: list[SamplingParams]) -> list[Completion]:
        if not self._going.wait(self.deadline_s):
            raise TimeoutError(f"a generation waited for a weight sync that did not end within {self.deadline_s:.0f} s")
        with self._used:
            return self.engine.generate(prompts, params)


def finished(
    ask: Ask, prompts: list[list[int]], params: SamplingParams | Sequence[SamplingParams], decode: Decode
) -> list[Completion]:
    """The whole response to each prompt, however often ``ask`` is interrupted.

    What goes on is read again from its first token on: an engine's cache of the beginning is of other weights, and
    log-probs taken with it would be those of no policy.
    """
    each = params_of_each(params, len(prompts))
    answers = [Completion([], [], truncated=False, weight_versions=[], interrupted=True) for _ in prompts]
    while left := [place for place, answer in enumerate(answers) if answer.interrupted]:
        asked = [prompts[place] + answers[place].token_ids for place in left]
        rest = [params_of_rest(each[place], len(answers[place].token_ids)) for place in left]
        for place, more in zip(left, ask(asked, rest), strict=True):
            there, whole = len(answers[place].token_ids), joined(answers[place], more)
            answers[place] = cut(whole, there, each[place].stop_strings, decode)
    return answers


def params_of_rest(params: SamplingParams, there: int) -> SamplingParams:
    """For a response that has ``there`` tokens. Its random numbers are new: the same ones again would bind later tokens
    to the first."""
    if there == 0:
        return params
    seed = None if params.seed is None else request_seed(params.seed, there)
    return replace(params, max_new_tokens=params.max_new_tokens - there, seed=seed)


def joined(first: Completion, rest: Completion) -> Completion:
    return replace(
        rest,
        token_ids=first.token_ids + rest.token_ids,
        log_probs=first.log_probs + rest.log_probs,
        weight_versions=first.weight_versions + rest.weight_versions,
    )


def cut(answer: Completion, there: int, stop_strings: Sequence[str], decode: Decode) -> Completion:
    """``answer`` up to a stop string that begins in its first ``there`` tokens and ends behind them: the engine that
    sampled the rest has not seen it."""
    if there == 0 or not stop_strings:
        return answer
    for count in range(there + 1, min(there + reach(stop_strings), len(answer.token_ids)) + 1):
        if ends(answer.token_ids[:count], stop_strings, decode):
            return Completion(
                answer.token_ids[:count],
                answer.log_probs[:count],
                truncated=False,
                weight_versions=answer.weight_versions[:count],
            )
    return answer
