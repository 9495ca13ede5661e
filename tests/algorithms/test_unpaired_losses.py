from __future__ import annotations

import math

import pytest
import torch

from openrlhf.algorithms.unpaired_losses import kl_baseline, kto

X = [-30.0, -3.0, -0.5, 0.0, 0.1, 2.0, 40.0]


def slow_kto(x, z, desirable, beta, w_d, w_u):
    """arXiv:2402.01306, the value of a gain and of a loss, taken off the most that they can be."""
    if desirable:
        return w_d - w_d / (1 + math.exp(-beta * (x - z)))
    return w_u - w_u / (1 + math.exp(-beta * (z - x)))


def loss(x, z=0.0, desirable=True, beta=0.1, w_d=1.0, w_u=1.0):
    x = torch.as_tensor(x, dtype=torch.float64)
    return kto(x, torch.full_like(x, z), torch.full(x.shape, desirable), beta, w_d, w_u)


@pytest.mark.parametrize("beta", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("z", [0.0, 1.5])
def test_kto_golden(beta, z):
    labels = [i % 2 == 0 for i in range(len(X))]
    for desirable in (labels, [not label for label in labels]):
        x = torch.tensor(X, dtype=torch.float64)
        out = kto(x, torch.full_like(x, z), torch.tensor(desirable), beta, 1.3, 0.7).tolist()
        expected = [slow_kto(a, z, d, beta, 1.3, 0.7) for a, d in zip(X, desirable, strict=True)]
        assert out == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("desirable", [True, False])
def test_an_answer_at_the_baseline_has_half_its_weight_left_to_lose(desirable):
    assert loss([2.0], z=2.0, desirable=desirable, w_d=3.0, w_u=5.0).item() == (1.5 if desirable else 2.5)


def test_labels_pull_in_opposite_directions():
    x = torch.tensor([0.0, 0.0], dtype=torch.float64, requires_grad=True)
    kto(x, torch.zeros(2), torch.tensor([True, False]), 0.2, 1.0, 4.0).sum().backward()
    assert x.grad.tolist() == pytest.approx([-0.2 / 4, 4 * 0.2 / 4])  # σ'(0) = 1/4


@pytest.mark.parametrize("desirable", [True, False])
def test_gradient(normal, check_gradient, desirable):
    check_gradient(lambda x: loss(x, 0.3, desirable), normal(20))


@pytest.mark.parametrize("x", [1e6, -1e6])
@pytest.mark.parametrize("desirable", [True, False])
def test_a_wild_ratio_stays_finite(x, desirable):
    variable = torch.tensor([x], requires_grad=True)
    out = kto(variable, torch.zeros(1), torch.tensor([desirable]), 0.1, 1.0, 1.0)
    out.sum().backward()
    assert out.isfinite().all() and variable.grad.isfinite().all()


def test_a_good_answer_far_above_keeps_its_digits():
    """1 − σ(40) is 4e-18, which 1 − σ computed as written rounds to 0."""
    assert loss([400.0]).item() == pytest.approx(math.exp(-40), rel=1e-6)


def test_answers_do_not_see_each_other(normal):
    x, labels = normal(20), torch.arange(20) % 3 == 0
    z = torch.full_like(x, 0.2)
    part = kto(x[7:9], z[7:9], labels[7:9], 0.3, 1.0, 2.0)
    assert torch.equal(kto(x, z, labels, 0.3, 1.0, 2.0)[7:9], part)


@pytest.mark.parametrize(("total", "count", "expected"), [(6.0, 4, 1.5), (-6.0, 4, 0.0), (0.0, 0, 0.0)])
def test_kl_baseline(total, count, expected):
    assert kl_baseline(torch.tensor(total), torch.tensor(count)).item() == expected
