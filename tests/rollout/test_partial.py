"""Responses that are broken off for new weights, with Transformers as the engine: none is lost, and each token is of
the weights that it names."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch

from openrlhf.backends.hf_generate import HFGenerate
from openrlhf.rollout.engine import Completion, SamplingParams, params_of_each
from openrlhf.rollout.partial import PartialEngine, finished
from tests.models.helpers import build
from tests.rollout.scripted import Stopping

EOS = 1
PROMPTS = [[5, 9], [6, 9, 11], [7], [5, 9], [8, 12, 13, 14]]
PARAMS = SamplingParams(temperature=0.8, max_new_tokens=9, stop_token_ids=(EOS,), seed=3)


def letters(token_ids: list[int]) -> str:
    return "".join(chr(ord("a") + token % 26) for token in token_ids)


@pytest.fixture(scope="module")
def models() -> list[Any]:
    return [build(seed=seed) for seed in range(9)]


def log_prob(model: Any, before: list[int], token: int) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([before])).logits[0, -1].double()
    return float((logits / 0.8).log_softmax(dim=0)[token])


@pytest.mark.parametrize("tokens", [1, 4])
def test_every_token_is_of_the_weights_that_it_names(models: list[Any], tokens: int) -> None:
    stopping = Stopping(models, tokens)
    answers = finished(stopping.ask, PROMPTS, PARAMS, letters)
    assert len(answers) == len(PROMPTS)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        count = len(answer.token_ids)
        assert answer.weight_versions == [k // tokens for k in range(count)]
        assert len(answer.log_probs) == count
        assert not answer.interrupted
        assert answer.truncated == (answer.token_ids[-1] != EOS)
        assert EOS not in answer.token_ids[:-1]
        assert count == 9 or not answer.truncated
        for k, version in enumerate(answer.weight_versions):
            before = prompt + answer.token_ids[:k]
            own = [log_prob(model, before, answer.token_ids[k]) for model in models[:3]]
            assert answer.log_probs[k] == pytest.approx(
                log_prob(models[version], before, answer.token_ids[k]), abs=1e-4
            )
            assert max(own) - min(own) > 1e-3  # which weights it was can be told
    assert any(len(answer.token_ids) > tokens for answer in answers)
    assert len(set(stopping.seeds)) == len(stopping.seeds)  # no random number is used twice


def test_only_what_has_not_ended_is_asked_for_again(models: list[Any]) -> None:
    stopping = Stopping(models, 2)
    answers = finished(stopping.ask, PROMPTS, PARAMS, letters)
    for call, asked in enumerate(stopping.asked):
        ongoing = [i for i, answer in enumerate(answers) if len(answer.token_ids) > 2 * call]
        assert asked == [PROMPTS[i] + answers[i].token_ids[: 2 * call] for i in ongoing]


def test_without_an_interruption_it_is_the_engine(models: list[Any]) -> None:
    engine = HFGenerate(models[0])
    expected = engine.generate(PROMPTS, params_of_each(PARAMS, len(PROMPTS)))
    assert finished(engine.generate, PROMPTS, PARAMS, letters) == expected


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_a_stop_string_may_lie_across_interruptions(models: list[Any], tokens: int) -> None:
    free = finished(Stopping(models, tokens).ask, PROMPTS, PARAMS, letters)
    place = max(range(len(PROMPTS)), key=lambda i: len(free[i].token_ids))
    stop = letters(free[place].token_ids)[1:5]
    stopping = Stopping(models, tokens, letters)
    answers = finished(stopping.ask, PROMPTS, replace(PARAMS, stop_strings=("no such text", stop)), letters)
    for whole, answer in zip(free, answers, strict=True):
        first, _, _ = letters(whole.token_ids).partition(stop)
        stopped = stop in letters(whole.token_ids)
        count = len(first) + len(stop) if stopped else len(whole.token_ids)
        assert answer.token_ids == whole.token_ids[:count]
        assert answer.log_probs == pytest.approx(whole.log_probs[:count])
        assert answer.weight_versions == whole.weight_versions[:count]
        assert (answer.truncated, answer.interrupted) == (whole.truncated and not stopped, False)
    assert len(answers[place].token_ids) == 5


class Endless:
    """Generates, a token at a time, until it is interrupted, and ends a response once it has three versions."""

    def __init__(self) -> None:
        self.version = 0
        self.stopped = threading.Event()
        self.at_work = threading.Event()
        self.broken = False

    def generate(self, prompts: list[list[int]], params: Any) -> list[Completion]:
        if self.broken:
            raise RuntimeError("a mixture of weights")
        self.at_work.set()
        if self.version < 2:
            assert self.stopped.wait(60)
        version, ends = self.version, self.version == 2
        return [Completion([10 + version], [-1.0], False, [version], interrupted=not ends) for _ in prompts]

    def interrupt(self) -> None:
        self.stopped.set()

    def resume(self) -> None:
        self.stopped.clear()

    def load_weights(self, weights: Iterable[Any], version: int) -> None:
        assert self.stopped.is_set()
        if version < 0:
            self.broken = True
            raise OSError("the disk is gone")
        self.version = version
        self.at_work.clear()

    def sleep(self) -> None: ...

    def wake(self) -> None: ...


def test_a_sync_waits_for_no_response_and_none_is_lost() -> None:
    """The engine would generate for ever if a sync waited for it."""
    engine = Endless()
    partial = PartialEngine(engine, 60, letters)
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(partial.generate, PROMPTS, PARAMS)
        for version in (1, 2):
            assert engine.at_work.wait(60)
            partial.load_weights([], version)
        assert [a.token_ids[-1] for a in answers.result(60)] == [12] * len(PROMPTS)
        assert {tuple(a.weight_versions) for a in answers.result(60)} <= {(0, 1, 2)}


def test_a_sync_that_fails_leaves_no_generation_waiting() -> None:
    engine = Endless()
    partial = PartialEngine(engine, 60, letters)
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(partial.generate, PROMPTS, PARAMS)
        assert engine.at_work.wait(60)
        with pytest.raises(OSError, match="the disk is gone"):
            partial.load_weights([], -1)
        with pytest.raises(RuntimeError, match="a mixture of weights"):
            answers.result(60)


def test_a_generation_does_not_wait_for_ever() -> None:
    partial = PartialEngine(Endless(), 0.01, letters)
    with partial.interrupted(), pytest.raises(TimeoutError, match="a generation waited for a weight sync"):
        partial.generate(PROMPTS, PARAMS)
