from __future__ import annotations

import pytest
import torch

from openrlhf.algorithms.value_losses import clipped_value_loss


def slow(value, old, target, clip):
    """arXiv:2005.12729, §3, halved."""
    plain = (value - target) ** 2
    if clip is None:
        return plain / 2
    moved = value - old
    moved = clip if moved > clip else -clip if moved < -clip else moved
    return max(plain, (old + moved - target) ** 2) / 2


@pytest.mark.parametrize("clip", [None, 0.2, 1.0])
def test_golden(normal, clip):
    values, old, returns = normal(), normal(), normal()
    out = clipped_value_loss(values, old, returns, clip)
    for b, t in torch.ones_like(out).nonzero().tolist():
        expected = slow(values[b, t].item(), old[b, t].item(), returns[b, t].item(), clip)
        assert out[b, t].item() == pytest.approx(expected, rel=1e-12)


def test_by_hand():
    """V_old = 0, R = 1, clip 0.2: V = 0.5 counts as 0.2, ½·0.8²; V = −0.5 counts as itself, ½·1.5²."""
    values = torch.tensor([[0.5, -0.5]], dtype=torch.float64)
    out = clipped_value_loss(values, torch.zeros_like(values), torch.ones_like(values), 0.2)
    assert out.tolist() == [pytest.approx([0.32, 1.125])]


@pytest.mark.parametrize("clip", [None, 0.2])
def test_gradient(normal, check_gradient, clip):
    old, returns = normal(), normal()
    check_gradient(lambda values: clipped_value_loss(values, old, returns, clip), normal())
