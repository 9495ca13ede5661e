from __future__ import annotations

import math

import pytest
import torch

from openrlhf.algorithms.kl import KL_ESTIMATORS, AdaptiveKL, FixedKL, kl_estimate, make_kl_controller

SLOW = {
    "k1": lambda p, q: p - q,
    "k2": lambda p, q: (p - q) ** 2 / 2,
    "k3": lambda p, q: math.exp(q - p) - 1 - (q - p),
}


@pytest.mark.parametrize("name", KL_ESTIMATORS)
def test_golden(normal, name):
    p, q = normal(), normal()
    out = kl_estimate(p, q, name)
    assert out.shape == p.shape
    for got, a, b in zip(out.flatten().tolist(), p.flatten().tolist(), q.flatten().tolist(), strict=True):
        assert got == pytest.approx(min(max(SLOW[name](a, b), -10.0), 10.0), rel=1e-10)


@pytest.mark.parametrize("name", KL_ESTIMATORS)
def test_clamped_to_ten(name):
    out = kl_estimate(torch.tensor([0.0, -100.0, -1000.0]), torch.tensor([-100.0, 0.0, 0.0]), name)
    assert out.tolist() == ([10.0, -10.0, -10.0] if name == "k1" else [10.0, 10.0, 10.0])


@pytest.mark.parametrize("name", KL_ESTIMATORS)
def test_no_nan_in_the_gradient_however_far_apart(name):
    log_probs = torch.tensor([-500.0, 0.0], requires_grad=True)
    kl_estimate(log_probs, torch.tensor([0.0, -500.0]), name).sum().backward()
    assert log_probs.grad.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", KL_ESTIMATORS)
def test_zero_for_equal_policies(normal, name):
    p = normal()
    assert (kl_estimate(p, p, name) == 0).all()


def test_k2_and_k3_are_never_negative(normal):
    p, q = normal() * 5, normal() * 5
    assert (kl_estimate(p, q, "k2") >= 0).all()
    assert (kl_estimate(p, q, "k3") >= 0).all()


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_unbiased(normal, name):
    """The expectation over tokens drawn from π is Σ π log(π/π_ref), for any pair of distributions."""
    p, q = normal(7).log_softmax(0), normal(7).log_softmax(0)
    expected = sum(math.exp(a) * (a - b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
    assert (p.exp() * kl_estimate(p, q, name)).sum().item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", KL_ESTIMATORS)
def test_gradient(normal, check_gradient, name):
    q = normal()
    check_gradient(lambda p: kl_estimate(p, q, name), normal())


def test_unknown_estimator_names_the_flag_and_the_nearest():
    with pytest.raises(ValueError, match=r"--kl_estimator: there is no 'k4'.*choose from k1, k2, k3"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")


def test_without_a_target_the_coefficient_stays():
    controller = make_kl_controller(0.01, None, 10000)
    controller.update(5.0, 128)
    assert controller == FixedKL(0.01)


def test_adaptive_golden():
    controller = make_kl_controller(0.2, 6.0, 10000)
    coef = 0.2
    for kl, samples in [(0.0, 256), (5.9, 256), (6.0, 64), (6.6, 512), (100.0, 1024), (-3.0, 128)]:
        error = kl / 6.0 - 1
        error = 0.2 if error > 0.2 else -0.2 if error < -0.2 else error
        coef = coef * (1 + error * samples / 10000)
        controller.update(kl, samples)
        assert controller.coef == pytest.approx(coef, rel=1e-12)


def test_adaptive_is_steady_at_the_target_and_moves_towards_it():
    controller = AdaptiveKL(1.0, 0.1, 1000)
    controller.update(0.1, 100)
    assert controller.coef == 1.0
    controller.update(0.11, 100)
    assert controller.coef == pytest.approx(1.01)
    controller.update(0.0, 100)
    assert controller.coef == pytest.approx(1.01 * 0.98)


@pytest.mark.parametrize("kl", [math.nan, math.inf, -math.inf])
def test_a_kl_that_is_not_finite_leaves_the_coefficient(kl):
    controller = AdaptiveKL(0.3, 0.1, 1000)
    controller.update(kl, 100)
    assert controller.coef == 0.3


@pytest.mark.parametrize(
    ("target", "horizon", "flag"), [(0.0, 1000, "kl_target"), (-1.0, 1000, "kl_target"), (1.0, 0, "kl_horizon")]
)
def test_bad_settings_name_the_flag(target, horizon, flag):
    with pytest.raises(ValueError, match=flag):
        make_kl_controller(0.1, target, horizon)


def test_a_horizon_that_could_turn_the_coefficient_negative_is_refused():
    with pytest.raises(ValueError, match=r"--kl_horizon 1000 is too short .* larger than 1000"):
        AdaptiveKL(0.1, 1.0, 1000).update(0.0, 5000)
    AdaptiveKL(0.1, 1.0, 1000).update(0.0, 4999)
