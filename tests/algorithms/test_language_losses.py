from __future__ import annotations

import math

import torch

from openrlhf.algorithms.language_losses import distillation, nll


def test_golden():
    probabilities = torch.tensor([[1.0, 0.5, 0.1]], dtype=torch.float64)
    expected = torch.tensor([[0.0, math.log(2), math.log(10)]], dtype=torch.float64)
    torch.testing.assert_close(nll(probabilities.log()), expected)


def test_gradient(normal, check_gradient):
    check_gradient(nll, normal())


def test_distillation_golden():
    """A quarter of −log π and three quarters of the cross-entropy, for two tokens of a vocabulary of two."""
    log_probs = torch.tensor([[math.log(0.5), math.log(0.2)]], dtype=torch.float64)
    cross = [-(0.9 * math.log(0.5) + 0.1 * math.log(0.5)), -(0.3 * math.log(0.8) + 0.7 * math.log(0.2))]
    expected = [0.25 * math.log(2) + 0.75 * cross[0], 0.25 * math.log(5) + 0.75 * cross[1]]
    got = distillation(log_probs, torch.tensor([cross], dtype=torch.float64), 0.75)
    torch.testing.assert_close(got, torch.tensor([expected], dtype=torch.float64))
    torch.testing.assert_close(distillation(log_probs, got, 0.0), nll(log_probs))
    torch.testing.assert_close(distillation(log_probs, got, 1.0), got)


def test_distillation_gradient(normal, check_gradient):
    fixed = normal()
    check_gradient(lambda log_probs: distillation(log_probs, fixed, 0.3), normal())
    check_gradient(lambda cross: distillation(fixed, cross, 0.3), normal())
