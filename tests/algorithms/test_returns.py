from __future__ import annotations

import pytest
import torch

from openrlhf.algorithms.returns import discounted_returns, gae


def slow_gae(rewards, values, gamma, lambd):
    """arXiv:1506.02438, eq. 16, as the double sum it is, for one sequence of steps."""
    n = len(rewards)
    following = [*values[1:], 0.0]
    deltas = [rewards[t] + gamma * following[t] - values[t] for t in range(n)]
    return [sum((gamma * lambd) ** (k - t) * deltas[k] for k in range(t, n)) for t in range(n)]


def slow_returns(rewards, gamma):
    return [sum(gamma ** (k - t) * rewards[k] for k in range(t, len(rewards))) for t in range(len(rewards))]


def actions(x, row):
    return [v for v, chosen in zip(x.tolist(), row.tolist(), strict=True) if chosen]


@pytest.mark.parametrize(("gamma", "lambd"), [(1.0, 1.0), (0.9, 0.95), (1.0, 0.0), (0.0, 0.5), (0.5, 1.0)])
def test_gae_golden(normal, mask, gamma, lambd):
    rewards, values = normal(), normal()
    advantages, returns = gae(rewards, values, mask, gamma, lambd)
    for b, row in enumerate(mask):
        v = actions(values[b], row)
        expected = slow_gae(actions(rewards[b], row), v, gamma, lambd)
        assert actions(advantages[b], row) == pytest.approx(expected, rel=1e-10)
        assert actions(returns[b], row) == pytest.approx([a + x for a, x in zip(expected, v, strict=True)], rel=1e-10)
    assert (advantages[~mask] == 0).all()
    assert (returns[~mask] == 0).all()


def test_gae_by_hand():
    """Prompt, action, tool output, action, padding; γ = 0.5, λ = 0.5. V is 4 on the prompt and 9 on the tool output.

    δ₂ = 1 − 2 = −1; δ₁ = 0 + 0.5·2 − 1 = 0; A₂ = −1; A₁ = 0 + 0.25·(−1) = −0.25.
    """
    mask = torch.tensor([[False, True, False, True, False]])
    rewards = torch.tensor([[7.0, 0.0, 7.0, 1.0, 7.0]])
    values = torch.tensor([[4.0, 1.0, 9.0, 2.0, 4.0]])
    advantages, returns = gae(rewards, values, mask, 0.5, 0.5)
    assert advantages.tolist() == [[0.0, -0.25, 0.0, -1.0, 0.0]]
    assert returns.tolist() == [[0.0, 0.75, 0.0, 1.0, 0.0]]


def test_gae_of_one_and_one_is_the_future_reward_minus_the_value(normal, mask):
    rewards, values = normal(), normal()
    advantages, returns = gae(rewards, values, mask, 1.0, 1.0)
    future = discounted_returns(rewards, mask, 1.0)
    torch.testing.assert_close(advantages[mask], (future - values)[mask], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(returns, future, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
def test_returns_golden(normal, mask, gamma):
    rewards = normal()
    out = discounted_returns(rewards, mask, gamma)
    for b, row in enumerate(mask):
        assert actions(out[b], row) == pytest.approx(slow_returns(actions(rewards[b], row), gamma), rel=1e-10)
    assert (out[~mask] == 0).all()


def test_gaps_change_nothing(normal):
    """The same steps with and without tool output between them."""
    rewards, values = normal(3, 4), normal(3, 4)
    spread = torch.tensor([0, 3, 4, 8])
    mask = torch.zeros(3, 9, dtype=torch.bool)
    mask[:, spread] = True
    wide_rewards, wide_values = normal(3, 9), normal(3, 9)
    wide_rewards[:, spread], wide_values[:, spread] = rewards, values
    everything = torch.ones(3, 4, dtype=torch.bool)
    dense = gae(rewards, values, everything, 0.9, 0.8)
    wide = gae(wide_rewards, wide_values, mask, 0.9, 0.8)
    assert torch.equal(wide[0][:, spread], dense[0])
    assert torch.equal(wide[1][:, spread], dense[1])
    assert torch.equal(
        discounted_returns(wide_rewards, mask, 0.9)[:, spread], discounted_returns(rewards, everything, 0.9)
    )


def test_a_batch_without_actions_has_zeros(normal, mask):
    nothing = torch.zeros_like(mask)
    advantages, returns = gae(normal(), normal(), nothing, 0.9, 0.9)
    assert advantages.shape == returns.shape == mask.shape
    assert not advantages.any() and not returns.any()
    assert not discounted_returns(normal(), nothing, 0.9).any()


def test_dtype_is_kept(normal, mask):
    assert gae(normal().float(), normal().float(), mask, 1.0, 1.0)[0].dtype == torch.float32
