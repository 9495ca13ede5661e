"""The actor's workers as a rollout engine (``--vllm_num_engines 0``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from openrlhf.cluster.group import Group
from openrlhf.rollout.engine import Completion, SamplingParams, divided


class ActorEngine:
    """Each worker samples a part of the prompts with the weights that it has."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.version = 0

    def generate(self, prompts: list[list[int]], params: SamplingParams | Sequence[SamplingParams]) -> list[Completion]:
        parts = divided(prompts, params, len(self.group.workers))
        answers = self.group.call("generate", [(*part, self.version) for part in parts])
        return [completion for part in answers for completion in part]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """The weights are here already, only their version changes."""
        self.version = version

    def sleep(self) -> None:
        """Nothing: the group sleeps and wakes."""

    def wake(self) -> None:
        """Nothing, as ``sleep``."""
