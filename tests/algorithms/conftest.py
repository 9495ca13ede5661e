from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

MASK = [
    # prompt, then actions, then padding
    [0, 0, 1, 1, 1, 0, 0, 0, 0],
    # two turns with tool output between them
    [0, 1, 1, 0, 0, 1, 0, 1, 0],
    # no action at all
    [0, 0, 0, 0, 0, 0, 0, 0, 0],
    # a single action, on the last column
    [0, 0, 0, 0, 0, 0, 0, 0, 1],
    # all actions
    [1, 1, 1, 1, 1, 1, 1, 1, 1],
    # gap of one, starts at column 0
    [1, 0, 1, 0, 0, 0, 0, 0, 0],
    [0, 1, 1, 1, 1, 1, 1, 0, 0],
    [0, 0, 0, 1, 1, 0, 1, 1, 1],
]


@pytest.fixture
def mask() -> Tensor:
    """(8, 9) bool: prompt, gaps, padding, a row without actions, a row of one."""
    return torch.tensor(MASK, dtype=torch.bool)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def normal(generator: torch.Generator, mask: Tensor) -> Callable[..., Tensor]:
    """Random normal float64, of the mask's shape unless told."""
    return lambda *shape: torch.randn(*(shape or mask.shape), generator=generator, dtype=torch.float64)


@pytest.fixture
def check_gradient(generator: torch.Generator) -> Callable[[Callable[[Tensor], Tensor], Tensor], None]:
    """Autograd of Σ f(x) against central differences along 20 random directions, in float64."""

    def check(f: Callable[[Tensor], Tensor], x: Tensor) -> None:
        variable = x.clone().requires_grad_()
        weights = torch.rand(f(x).shape, generator=generator, dtype=torch.float64)
        (gradient,) = torch.autograd.grad((f(variable) * weights).sum(), variable)
        step = 1e-6
        for _ in range(20):
            direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            direction /= direction.norm()
            ahead, behind = (f(x + step * direction) * weights).sum(), (f(x - step * direction) * weights).sum()
            slope = ((ahead - behind) / (2 * step)).item()
            assert slope == pytest.approx((gradient * direction).sum().item(), rel=1e-6, abs=1e-8)

    return check
