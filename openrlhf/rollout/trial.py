"""A reward function tried on answers that every policy gives some day, the way training asks it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from openrlhf.rollout.collect import collect
from openrlhf.rollout.engine import Completion, SamplingParams
from openrlhf.rollout.rewards import RewardFailed, RewardFunction
from openrlhf.types import Metrics, Prompt, merge_metrics


@dataclass(frozen=True)
class Tried:
    """What the answers of one kind were paid in one call, one entry a prompt."""

    kind: str
    rewards: list[float]
    scores: list[float]
    logs: Metrics  # means
    seconds: float


@dataclass(frozen=True)
class Told:
    """A rollout engine whose answers are known beforehand."""

    answers: list[Completion]

    def generate(self, prompts: list[list[int]], params: SamplingParams | Sequence[SamplingParams]) -> list[Completion]:
        return self.answers

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None: ...

    def sleep(self) -> None: ...

    def wake(self) -> None: ...


def kinds(prompts: Sequence[Prompt], tokenizer: Any, longest: int) -> dict[str, list[Completion]]:
    """Kind → one answer a prompt: ``right`` (the label, if every prompt has one), then what is made of that or, without
    labels, of the prompt: ``cut`` in half, ``repeated`` for ``longest`` tokens; and ``empty``.
    """
    labelled = all(prompt.label for prompt in prompts)
    texts = [prompt.label if labelled else prompt.text for prompt in prompts]
    # Separately, so that a text with and without the line end is the same tokens up to there.
    tokens = [list(tokenizer(text, add_special_tokens=False).input_ids)[:longest] for text in texts]
    gap = list(tokenizer("\n", add_special_tokens=False).input_ids)
    end = [tokenizer.eos_token_id]
    right = {"right": [_said([*t, *end]) for t in tokens]} if labelled else {}
    return right | {
        "cut": [_said(t[: len(t) // 2], truncated=True) for t in tokens],
        "repeated": [_said(([*t, *gap] * longest)[:longest], truncated=True) for t in tokens],
        "empty": [_said(end) for _ in prompts],
    }


def try_answers(
    kind: str, answers: list[Completion], prompts: list[Prompt], function: RewardFunction, tokenizer: Any
) -> Tried:
    """One call for an answer to each prompt. Raises RewardFailed, naming the function, the value and the kind."""
    begun = time.monotonic()
    try:
        samples = collect(prompts, Told(answers), SamplingParams(), 1, tokenizer, function)
    except RewardFailed as failure:
        raise RewardFailed(f"{failure} (asked about {kind} answers)") from failure
    seconds = time.monotonic() - begun
    return Tried(
        kind,
        [_number(sample.reward) for sample in samples],
        [_number(sample.score) for sample in samples],
        merge_metrics([sample.metrics for sample in samples]),
        seconds,
    )


def remarks(tried: Sequence[Tried]) -> list[str]:
    """What is wrong with a reward that works."""
    if len({reward for each in tried for reward in each.rewards}) == 1:
        return [f"every answer is paid {tried[0].rewards[0]:g}: there is nothing to learn"]
    means = {each.kind: sum(each.rewards) / len(each.rewards) for each in tried}
    right = means.pop("right", None)
    if right is None:
        return []
    return [
        f"right answers are paid {right:.4g} on average and {kind} ones {mean:.4g}: no less"
        for kind, mean in means.items()
        if mean >= right
    ]


def _said(tokens: list[int], truncated: bool = False) -> Completion:
    return Completion(tokens, [0.0] * len(tokens), truncated, weight_versions=[0] * len(tokens))


def _number(value: float | None) -> float:
    assert value is not None  # collect leaves out what has none
    return value
