"""What generates tokens: the protocol that vLLM, Transformers and a test's fake answer alike."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class SamplingParams:
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    repetition_penalty: float = 1.0  # above 1 makes tokens of the prompt and of the response so far less likely
    max_new_tokens: int = 1024
    stop_token_ids: tuple[int, ...] = ()  # end a response and stay in it
    stop_strings: tuple[str, ...] = ()  # the same, whichever tokens write them
    seed: int | None = None


@dataclass
class Completion:
    """One response. The lists have an entry a token: ``log_probs`` are the engine's, at the sampling temperature,
    ``weight_versions`` those of the weights that chose it."""

    token_ids: list[int]
    log_probs: list[float]
    truncated: bool  # cut at max_new_tokens instead of ended by a stop token or string
    weight_versions: list[int]
    interrupted: bool = False  # broken off to let new weights in: the rest is to be asked for


class EnginesLost(ValueError):
    """There is nothing left to sample with. What has been learnt so far is not touched by that."""


class RolloutEngine(Protocol):
    """Token ids in, token ids out. Calls are blocking; each has its own deadline inside."""

    def generate(self, prompts: list[list[int]], params: SamplingParams | Sequence[SamplingParams]) -> list[Completion]:
        """One completion a prompt, in the order of the prompts; ``params`` for all of them, or one a prompt.

        With parameters of its own, seed among them, what a prompt gets does not depend on the prompts beside it.
        """
        ...

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace the parameters (Hugging Face names, full tensors) and forget every cached prefix."""
        ...

    def sleep(self) -> None:
        """Give the device memory back until ``wake``."""
        ...

    def wake(self) -> None: ...


def step_seed(seed: int, step: int, part: int = 0) -> int:
    """The seed of the rollout of a step, and of each further part of it that is asked for.

    Not ``seed`` + ``step``: with it the run of seed 43 would draw at step k what the run of seed 42 draws at k + 1, and
    runs that are meant to be independent would share their samples.
    """
    return _hashed(f"step {seed}:{step}:{part}", 8)


def request_seed(seed: int, index: int) -> int:
    """The seed of request ``index`` of a rollout: the same however the requests are divided among engines."""
    return _hashed(f"{seed}:{index}", 4)


def _hashed(text: str, size: int) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=size).digest(), "big")


def divided(
    prompts: list[list[int]], params: SamplingParams | Sequence[SamplingParams], parts: int
) -> list[tuple[list[list[int]], list[SamplingParams]]]:
    """The prompts with the parameters of each, evenly and in order. Their seeds are numbered over all of them, so the
    number of parts does not change what is sampled."""
    each = params_of_each(params, len(prompts))
    cut = [round(part * len(prompts) / parts) for part in range(parts + 1)]
    return [(prompts[a:b], each[a:b]) for a, b in pairwise(cut)]


def params_of_each(params: SamplingParams | Sequence[SamplingParams], count: int) -> list[SamplingParams]:
    """Parameters of each of ``count`` prompts; where one object stands for all, each gets a seed by its place."""
    if not isinstance(params, SamplingParams):
        return list(params)
    if params.seed is None:
        return [params] * count
    return [replace(params, seed=request_seed(params.seed, place)) for place in range(count)]
