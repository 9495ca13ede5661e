from __future__ import annotations

import math

import pytest
import torch

from openrlhf.algorithms.reward_losses import REWARD_LOSSES, logexp, sigmoid

SCORES = [(0.0, 0.0), (1.5, -0.5), (-2.0, 3.0), (10.0, 9.9), (-30.0, -20.0)]
MARGINS = [0.0, 1.0, 0.5, 3.0, -1.0]
CHOSEN, REJECTED = torch.tensor(SCORES, dtype=torch.float64).unbind(1)


def wins(chosen, rejected):
    """The Bradley–Terry probability by its definition."""
    return math.exp(chosen) / (math.exp(chosen) + math.exp(rejected))


@pytest.mark.parametrize("name", REWARD_LOSSES)
def test_golden(name):
    expected = [-math.log(wins(c, r)) for c, r in SCORES]
    assert REWARD_LOSSES[name](CHOSEN, REJECTED).tolist() == pytest.approx(expected, rel=1e-12)


def test_golden_with_a_margin():
    expected = [-math.log(1 / (1 + math.exp(-(c - r - m)))) for (c, r), m in zip(SCORES, MARGINS, strict=True)]
    assert sigmoid(CHOSEN, REJECTED, torch.tensor(MARGINS)).tolist() == pytest.approx(expected, rel=1e-12)


def test_a_margin_asks_for_more():
    chosen = torch.ones(1, requires_grad=True)
    plain, more = sigmoid(chosen, torch.zeros(1)), sigmoid(chosen, torch.zeros(1), torch.ones(1))
    assert more > plain
    assert more.item() == pytest.approx(math.log(2))
    assert torch.autograd.grad(more, chosen)[0] < torch.autograd.grad(plain, chosen)[0] < 0


@pytest.mark.parametrize("name", REWARD_LOSSES)
def test_gradient_on_both_sides(normal, check_gradient, name):
    other = normal(20)
    check_gradient(lambda chosen: REWARD_LOSSES[name](chosen, other), normal(20))
    check_gradient(lambda rejected: REWARD_LOSSES[name](other, rejected), normal(20))


def test_gradient_with_a_margin(normal, check_gradient):
    rejected, margin = normal(20), normal(20)
    check_gradient(lambda chosen: sigmoid(chosen, rejected, margin), normal(20))


@pytest.mark.parametrize("name", REWARD_LOSSES)
@pytest.mark.parametrize("rejected", [1e5, -1e5])
def test_a_wild_score_stays_finite(name, rejected):
    """exp(1e5) alone would overflow."""
    scores = torch.tensor([rejected], requires_grad=True)
    loss = REWARD_LOSSES[name](torch.zeros(1), scores)
    loss.sum().backward()
    assert loss.item() == pytest.approx(max(rejected, 0.0))
    assert scores.grad.isfinite().all()


def test_both_names_are_the_same_number(normal):
    chosen, rejected = normal(50), normal(50)
    torch.testing.assert_close(logexp(chosen, rejected), sigmoid(chosen, rejected))


@pytest.mark.parametrize("name", REWARD_LOSSES)
def test_pairs_do_not_see_each_other(normal, name):
    chosen, rejected = normal(20), normal(20)
    loss = REWARD_LOSSES[name](chosen, rejected)
    assert loss.shape == chosen.shape
    assert torch.equal(loss[7:9], REWARD_LOSSES[name](chosen[7:9], rejected[7:9]))
