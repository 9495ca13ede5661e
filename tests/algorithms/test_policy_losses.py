from __future__ import annotations

import math

import pytest
import torch

from openrlhf.algorithms.policy_losses import POLICY_LOSSES, ppo


def slow_ppo(new, old, a, low, high, dual):
    """arXiv:1707.06347, eq. 7 and arXiv:1912.09729, eq. 5, for one token: the objective to be maximised."""
    ratio = math.exp(new - old)
    bounded = 1 - low if ratio < 1 - low else 1 + high if ratio > 1 + high else ratio
    objective = min(ratio * a, bounded * a)
    if dual is not None and a < 0:
        objective = max(objective, dual * a)
    return objective


@pytest.mark.parametrize("dual", [None, 1.5, 3.0])
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.2, 0.28), (0.05, 0.5)])
def test_golden(normal, low, high, dual):
    new, old, advantages = normal(), normal(), normal()
    out = ppo(new, old, advantages, low, high, dual)
    for b, t in torch.ones_like(new).nonzero().tolist():
        n, o, a = new[b, t].item(), old[b, t].item(), advantages[b, t].item()
        assert out.loss[b, t].item() == pytest.approx(-slow_ppo(n, o, a, low, high, dual), rel=1e-12)
        assert out.ratio[b, t].item() == pytest.approx(math.exp(n - o), rel=1e-12)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.5, 2.0, -2.4, True),  # already more likely than allowed: held at 1.2·A
        (0.5, 2.0, -1.0, False),
        (1.0, 2.0, -2.0, False),
        (0.5, -2.0, 1.6, True),  # already less likely than allowed: held at 0.8·A
        (1.5, -2.0, 3.0, False),
        (5.0, -2.0, 6.0, True),  # dual clip: held at 3·A
        (5.0, 2.0, -2.4, True),
        (5.0, 0.0, 0.0, False),
    ],
)
def test_by_hand(ratio, advantage, loss, clipped):
    """ε = 0.2, c = 3."""
    new = torch.tensor([[math.log(ratio)]], dtype=torch.float64)
    out = ppo(new, torch.zeros_like(new), torch.full_like(new, advantage), 0.2, 0.2, 3.0)
    assert out.loss.item() == pytest.approx(loss)
    assert out.clipped.item() is clipped


@pytest.mark.parametrize("dual", [None, 1.5])
def test_clipped_is_where_there_is_no_gradient(normal, dual):
    new = normal().requires_grad_()
    out = ppo(new, normal(), normal(), 0.2, 0.28, dual)
    out.loss.sum().backward()
    assert out.clipped.any() and not out.clipped.all()
    assert torch.equal(out.clipped, new.grad == 0)


@pytest.mark.parametrize("dual", [None, 1.5])
def test_gradient(normal, check_gradient, dual):
    old, advantages = normal(), normal()
    check_gradient(lambda new: ppo(new, old, advantages, 0.2, 0.28, dual).loss, normal())


@pytest.mark.parametrize("difference", [500.0, -500.0])
def test_a_wild_ratio_stays_finite(difference):
    new = torch.tensor([[difference]], requires_grad=True)
    out = ppo(new, torch.zeros(1, 1), torch.tensor([[-1.0]]), 0.2, 0.2, None)
    assert out.ratio.item() == pytest.approx(math.exp(math.copysign(20.0, difference)), rel=1e-5)
    out.loss.sum().backward()
    assert new.grad.isfinite().all()


def test_dual_clip_must_exceed_one():
    with pytest.raises(ValueError, match=r"--dual_clip must be greater than 1, got 1\.0"):
        ppo(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1, 1), 0.2, 0.2, 1.0)


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_every_entry(normal, mask, name):
    old, advantages = normal(), normal()
    new = old.clone().requires_grad_()
    out = POLICY_LOSSES[name](new, old, advantages, 0.2, 0.2, None)
    for field in out:
        assert field.shape == mask.shape
    assert out.loss.isfinite().all()
    assert out.clipped.dtype == torch.bool and not out.clipped.any()
    assert torch.equal(out.ratio, torch.ones_like(old))
    out.loss.sum().backward()
    torch.testing.assert_close(new.grad, -advantages)  # on-policy this is the policy gradient


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_order_of_rows_does_not_matter(normal, name):
    new, old, advantages = normal(), normal(), normal()
    order = [5, 2, 7, 0, 3, 6, 1, 4]
    straight = POLICY_LOSSES[name](new, old, advantages, 0.2, 0.2, 3.0).loss
    shuffled = POLICY_LOSSES[name](new[order], old[order], advantages[order], 0.2, 0.2, 3.0).loss
    assert torch.equal(straight[order], shuffled)
