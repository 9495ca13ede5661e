from __future__ import annotations

import math

import pytest
import torch

from openrlhf.algorithms.policy_losses import POLICY_LOSSES, cispo, find_policy_loss, gspo
from openrlhf.algorithms.policy_losses import ppo as masked_ppo


def ppo(new, old, advantages, *bounds):
    """Every token is an action: the mask does not matter to a token's own loss."""
    return masked_ppo(new, old, advantages, torch.ones_like(new, dtype=torch.bool), *bounds)


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
    """On-policy, with one advantage for all tokens of an answer, each of them is the policy gradient."""
    old, advantages = normal(), normal()[:, :1] * mask
    new = old.clone().requires_grad_()
    out = POLICY_LOSSES[name].function(new, old, advantages, mask, 0.2, 0.2, None)
    for field in out:
        assert field.shape == mask.shape
    assert out.loss.isfinite().all()
    assert out.clipped.dtype == torch.bool and not out.clipped.any()
    assert torch.equal(out.ratio, torch.ones_like(old))
    out.loss[mask].sum().backward()
    torch.testing.assert_close(new.grad, -advantages)


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_order_of_rows_does_not_matter(normal, mask, name):
    new, old, advantages = normal(), normal(), normal()
    order = [5, 2, 7, 0, 3, 6, 1, 4]
    function = POLICY_LOSSES[name].function
    straight = function(new, old, advantages, mask, 0.2, 0.2, None).loss
    shuffled = function(new[order], old[order], advantages[order], mask[order], 0.2, 0.2, None).loss
    assert torch.equal(straight[order], shuffled)


@pytest.mark.parametrize("dual", [None, 1.5])
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.28), (3e-4, 4e-4)])
def test_gspo_golden(normal, mask, low, high, dual):
    """arXiv:2507.18071, eq. 5 and 7: PPO's bound on the length-normalised ratio of the answer."""
    new, old, advantages = normal(), normal(), normal()
    out = gspo(new, old, advantages, mask, low, high, dual)
    for b in range(len(mask)):
        places = [t for t in range(mask.shape[1]) if mask[b, t]]
        if not places:
            continue
        mean = sum(new[b, t].item() - old[b, t].item() for t in places) / len(places)
        for t in places:
            assert out.ratio[b, t].item() == pytest.approx(math.exp(mean), rel=1e-12)
            expected = -slow_ppo(mean, 0.0, advantages[b, t].item(), low, high, dual)
            assert out.loss[b, t].item() == pytest.approx(expected, rel=1e-12)


def test_gspo_does_not_see_masked_tokens(normal, mask):
    new, old, advantages = normal(), normal(), normal()
    clean = gspo(new, old, advantages, mask, 0.2, 0.2, None).loss
    poisoned = gspo(new.masked_fill(~mask, math.nan), old, advantages, mask, 0.2, 0.2, None).loss
    assert torch.equal(clean[mask], poisoned[mask])


def test_gspo_gradient(normal, mask, check_gradient):
    old, advantages = normal(), normal()
    check_gradient(lambda new: gspo(new, old, advantages, mask, 0.2, 0.28, None).loss, normal())


def test_cispo_golden(normal, mask):
    """arXiv:2506.13585, eq. 4: the clipped ratio weighs the log-prob, and only the log-prob has a gradient."""
    new, old, advantages = normal().requires_grad_(), normal(), normal()
    out = cispo(new, old, advantages, mask, 0.2, 0.28, None)
    out.loss.sum().backward()
    assert out.clipped.any() and not out.clipped.all()
    for b, t in torch.ones_like(mask).nonzero().tolist():
        ratio = math.exp(new[b, t].item() - old[b, t].item())
        weight = min(max(ratio, 0.8), 1.28)
        a = advantages[b, t].item()
        assert out.loss[b, t].item() == pytest.approx(-weight * a * new[b, t].item(), rel=1e-12)
        assert new.grad[b, t].item() == pytest.approx(-weight * a, rel=1e-12)
        assert out.clipped[b, t].item() is (weight != ratio)


def test_cispo_has_no_dual_clip(normal, mask):
    with pytest.raises(ValueError, match="--dual_clip bounds the losses ppo and gspo"):
        cispo(normal(), normal(), normal(), mask, 0.2, 0.2, 3.0)


def test_a_loss_from_a_file(tmp_path):
    file = tmp_path / "own.py"
    file.write_text("def double(new, old, advantages, mask, low, high, dual):\n    return 2 * new\n")
    found = find_policy_loss(f"{file}:double")
    assert found.function(3, *[None] * 6) == 6 and not found.by_sequence
    with pytest.raises(ValueError, match="--policy_loss_type: there is no 'gsp' .did you mean gspo"):
        find_policy_loss("gsp")
