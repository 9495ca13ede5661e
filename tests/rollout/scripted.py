"""An engine that answers from a script, and a tokenizer of words that does not survive encode and decode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace

import torch

from openrlhf.rollout.agents import Agent, load_executor
from openrlhf.rollout.collect import collect
from openrlhf.rollout.engine import Completion, SamplingParams
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


def hold(
    agent: Agent, answers: Answers, prompts: list[Prompt], n: int = 1, params: SamplingParams | None = None
) -> tuple[list[Sample], Scripted]:
    engine = Scripted(answers)
    params = params or SamplingParams(max_new_tokens=8, stop_token_ids=(25,), seed=7)
    return collect(prompts, engine, params, n, Letters(), None, agent), engine
