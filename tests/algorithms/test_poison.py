"""NaN in every slot outside the mask must not change a bit of any result."""

from __future__ import annotations

import math

import pytest
import torch

from openrlhf.algorithms import masked, returns, rewards

PER_TOKEN = {
    "zero_outside": masked.zero_outside,
    "masked_sum": masked.masked_sum,
    "masked_mean": masked.masked_mean,
    "whiten": masked.whiten,
    "whiten, mean kept": lambda x, mask: masked.whiten(x, mask, shift_mean=False),
    "whiten, mean only": lambda x, mask: masked.whiten(x, mask, scale=False),
    "kl_penalty": lambda x, mask: rewards.kl_penalty(x, 0.1, mask),
    "discounted_returns": lambda x, mask: returns.discounted_returns(x, mask, 0.9),
    "gae": lambda x, mask: torch.stack(returns.gae(x, x.square(), mask, 0.9, 0.9)),
}
GROUPS = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2])
PER_ROW = {
    "group_mean": lambda x, mask: masked.group_mean(x, GROUPS, mask),
    "group_std": lambda x, mask: masked.group_std(x, GROUPS, mask),
    "leave_one_out_mean": lambda x, mask: masked.leave_one_out_mean(x, GROUPS, mask),
}


@pytest.mark.parametrize("name", PER_TOKEN)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_per_token(normal, mask, name, poison):
    x = normal().float()
    clean, poisoned = PER_TOKEN[name](x, mask), PER_TOKEN[name](x.masked_fill(~mask, poison), mask)
    assert clean.isfinite().all()
    assert torch.equal(clean, poisoned)


@pytest.mark.parametrize("name", PER_TOKEN)
def test_per_token_gradient(normal, mask, name):
    x = normal().masked_fill(~mask, math.nan).requires_grad_()
    PER_TOKEN[name](x, mask).sum().backward()
    assert x.grad[mask].isfinite().all()


@pytest.mark.parametrize("name", PER_ROW)
def test_per_row(normal, name):
    x, members = normal(8).float(), torch.tensor([True, True, False, False, True, True, True, False])
    clean, poisoned = PER_ROW[name](x, members), PER_ROW[name](x.masked_fill(~members, math.nan), members)
    assert clean.isfinite().all()
    assert torch.equal(clean, poisoned)


def test_last_token(normal, mask):
    x = normal(len(mask)).float()
    poisoned = x.masked_fill(~mask.any(dim=1), math.nan)
    assert torch.equal(rewards.place_on_last_token(x, mask), rewards.place_on_last_token(poisoned, mask))
