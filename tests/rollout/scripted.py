"""Engines that answer from a script or are interrupted, and a tokenizer of letters that does not survive encode and
decode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from openrlhf.backends.hf_generate import HFGenerate
from openrlhf.rollout.agents import Agent, load_executor
from openrlhf.rollout.collect import collect
from openrlhf.rollout.engine import Completion, SamplingParams
from openrlhf.rollout.stop_strings import Decode
from openrlhf.types import Prompt, Sample

Answers = Callable[[list[int], SamplingParams], Completion]


class Scripted:
    """``answers(tokens, params)`` is the policy. Remembers the batches it was asked."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.batches: list[list[list[int]]] = []
        self.params: list[list[SamplingParams]] = []

    def generate(self, prompts: list[list[int]], params: SamplingParams | Sequence[SamplingParams]) -> list[Completion]:
        assert not isinstance(params, SamplingParams)
        self.batches.append(prompts)
        self.params.append(list(params))
        return [self.answers(prompt, own) for prompt, own in zip(prompts, params, strict=True)]

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None: ...

    def sleep(self) -> None: ...

    def wake(self) -> None: ...


class Stopping:
    """Each call samples with the next model, and is interrupted after ``tokens`` of them."""

    def __init__(self, models: list[Any], tokens: int, decode: Decode | None = None) -> None:
        self.models = models
        self.tokens = tokens
        self.decode = decode
        self.asked: list[list[list[int]]] = []
        self.seeds: list[int | None] = []

    def ask(self, prompts: list[list[int]], params: list[SamplingParams]) -> list[Completion]:
        version = len(self.asked)
        self.asked.append(prompts)
        self.seeds += [own.seed for own in params]
        engine = HFGenerate(self.models[version], self.decode)
        engine.version = version
        short = [replace(own, max_new_tokens=min(self.tokens, own.max_new_tokens)) for own in params]
        answers = engine.generate(prompts, short)
        for answer, own in zip(answers, params, strict=True):
            answer.interrupted = answer.truncated and own.max_new_tokens > self.tokens
        return answers


class Letters:
    """Token i is the letter of i modulo 26, and a letter is encoded as 0 to 25: the ids above are lost in a text."""

    def __call__(self, text: str, add_special_tokens: bool) -> SimpleNamespace:
        assert not add_special_tokens
        return SimpleNamespace(input_ids=[ord(letter) - ord("a") for letter in text])

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        assert not skip_special_tokens
        return "".join(chr(ord("a") + i % 26) for i in ids)


def agent(folder: Path, code: str, max_length: int = 100, timeout_s: float = 20.0, drops: bool = False) -> Agent:
    file = folder / "agent.py"
    file.write_text(code, encoding="utf-8")
    return Agent(str(file), load_executor(str(file)), max_length, timeout_s, drops)


def said_of(tokens: list[int], log_prob: float = 0.0, truncated: bool = False) -> Completion:
    """An answer of the weights that an engine starts with."""
    return Completion(tokens, [log_prob] * len(tokens), truncated, weight_versions=[0] * len(tokens))


def hold(
    agent: Agent, answers: Answers, prompts: list[Prompt], n: int = 1, params: SamplingParams | None = None
) -> tuple[list[Sample], Scripted]:
    engine = Scripted(answers)
    params = params or SamplingParams(max_new_tokens=8, stop_token_ids=(25,), seed=7)
    return collect(prompts, engine, params, n, Letters(), None, agent), engine
