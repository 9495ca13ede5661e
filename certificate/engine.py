"""Ranks that do not learn: they keep the gradient of every step and leave the weights alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openrlhf.training.roles import StepStats


class GradientEngine:
    """A ``StepEngine`` in this process; how several of them add up is given by ``sum_over_ranks``."""

    device = torch.device("cpu")

    def __init__(
        self,
        model: nn.Module,
        sum_over_ranks: Callable[[Tensor], Tensor] = lambda x: x,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.model = model
        self.sum_over_ranks = sum_over_ranks
        self.rank, self.world = rank, world
        self.gradients: list[Tensor] = []
        self.flags: list[bool] = []

    def backward(self, loss: Tensor, last: bool) -> None:
        self.flags.append(last)
        loss.backward()

    def step(self) -> StepStats:
        self.gradients.append(self.sum_over_ranks(gradient(self.model)))
        self.model.zero_grad()
        return StepStats(float(self.gradients[-1].norm()), 0.0)

    def largest(self, number: int) -> int:
        said = torch.zeros(self.world)
        said[self.rank] = number
        return int(self.sum_over_ranks(said).max())

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        raise NotImplementedError

    def save(self, folder: Path, tokenizer: Any) -> None:
        raise NotImplementedError

    def offload(self) -> None: ...

    def onload(self) -> None: ...


def gradient(model: nn.Module) -> Tensor:
    """(P,): of all parameters, in their order; zero where there is none."""
    return torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in model.parameters()]
    )
