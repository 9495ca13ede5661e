from __future__ import annotations

import math

import pytest
import torch

from openrlhf.algorithms.preference_losses import PREFERENCE_LOSSES, dpo, ipo

H = [-30.0, -3.0, -0.5, 0.0, 0.1, 2.0, 40.0]


def slow_dpo(h, beta, epsilon):
    """arXiv:2305.18290, eq. 7, once for the label and once for its opposite."""
    right, wrong = 1 / (1 + math.exp(-beta * h)), 1 / (1 + math.exp(beta * h))
    return -(1 - epsilon) * math.log(right) - epsilon * math.log(wrong)


@pytest.mark.parametrize("beta", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.4])
def test_dpo_golden(beta, epsilon):
    out = dpo(torch.tensor(H, dtype=torch.float64), beta, epsilon).tolist()
    assert out == pytest.approx([slow_dpo(h, beta, epsilon) for h in H], rel=1e-12)


@pytest.mark.parametrize("beta", [0.01, 0.1, 0.5])
def test_ipo_golden(beta):
    out = ipo(torch.tensor(H, dtype=torch.float64), beta).tolist()
    assert out == pytest.approx([(h - 0.5 / beta) ** 2 for h in H], rel=1e-12)


@pytest.mark.parametrize("epsilon", [0.0, 0.3])
def test_dpo_of_a_policy_that_is_its_reference(epsilon):
    assert dpo(torch.zeros(1), 0.1, epsilon).item() == pytest.approx(math.log(2))


def test_no_label_smoothing_is_dpo(normal):
    h = normal(50)
    torch.testing.assert_close(dpo(h, 0.3, 0.0), -torch.sigmoid(0.3 * h).log())


def test_smoothing_of_one_swaps_the_pair(normal):
    h = normal(50)
    torch.testing.assert_close(dpo(h, 0.3, 1.0), dpo(-h, 0.3, 0.0))


def test_label_smoothing_stops_where_the_labels_are_as_sure_as_the_policy():
    """With ε of the labels wrong, the best βh is log((1−ε)/ε): no gradient there, and it pushes back beyond."""
    beta, epsilon = 0.2, 0.1
    best = math.log((1 - epsilon) / epsilon) / beta
    h = torch.tensor([best - 1, best, best + 1], dtype=torch.float64, requires_grad=True)
    dpo(h, beta, epsilon).sum().backward()
    assert h.grad[0] < 0 < h.grad[2]
    assert h.grad[1].item() == pytest.approx(0, abs=1e-12)


def test_ipo_stops_at_its_target():
    h = torch.tensor([4.0, 5.0, 6.0], requires_grad=True)
    ipo(h, 0.1).sum().backward()
    assert h.grad.tolist() == [-2.0, 0.0, 2.0]


@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_dpo_gradient(normal, check_gradient, epsilon):
    check_gradient(lambda h: dpo(h, 0.3, epsilon), normal(20))


def test_ipo_gradient(normal, check_gradient):
    check_gradient(lambda h: ipo(h, 0.3), normal(20))


@pytest.mark.parametrize("h", [1e6, -1e6])
@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_a_wild_preference_stays_finite(h, epsilon):
    variable = torch.tensor([h], requires_grad=True)
    loss = dpo(variable, 0.1, epsilon)
    loss.sum().backward()
    assert loss.isfinite().all() and variable.grad.isfinite().all()


@pytest.mark.parametrize(("name", "settings"), [("dpo", (0.1, 0.2)), ("ipo", (0.1,))])
def test_pairs_do_not_see_each_other(normal, name, settings):
    h = normal(20)
    loss = PREFERENCE_LOSSES[name](h, *settings)
    assert loss.shape == h.shape
    assert torch.equal(loss[7:9], PREFERENCE_LOSSES[name](h[7:9], *settings))
