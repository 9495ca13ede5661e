"""What generates tokens: the protocol that vLLM, Transformers and a test's fake answer alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class SamplingParams:
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    repetition_penalty: float = 1.0  # above 1 makes tokens of the prompt and of the response so far less likely
    max_new_tokens: int = 1024
    stop_token_ids: tuple[int, ...] = ()  # end a response and stay in it
    seed: int | None = None


@dataclass
class Completion:
    """One response; ``log_probs[i]`` is the engine's for ``token_ids[i]``, at the sampling temperature."""

    token_ids: list[int]
    log_probs: list[float]
    truncated: bool  # cut at max_new_tokens instead of ended by a stop token
    weight_version: int = 0


class RolloutEngine(Protocol):
    """Token ids in, token ids out. Calls are blocking; each has its own deadline inside."""

    def generate(self, prompts: list[list[int]], params: SamplingParams) -> list[Completion]:
        """One completion a prompt, in the order of the prompts."""
        ...

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace the parameters (Hugging Face names, full tensors) and forget every cached prefix."""
        ...

    def sleep(self) -> None:
        """Give the device memory back until ``wake``."""
        ...

    def wake(self) -> None: ...
