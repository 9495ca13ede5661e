from __future__ import annotations

import math

import torch

from openrlhf.algorithms.language_losses import nll


def test_golden():
    probabilities = torch.tensor([[1.0, 0.5, 0.1]], dtype=torch.float64)
    expected = torch.tensor([[0.0, math.log(2), math.log(10)]], dtype=torch.float64)
    torch.testing.assert_close(nll(probabilities.log()), expected)


def test_gradient(normal, check_gradient):
    check_gradient(nll, normal())
