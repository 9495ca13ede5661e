from __future__ import annotations

import pytest
import torch

from openrlhf.algorithms.rewards import (
    clip_rewards,
    kl_penalty,
    overlong_penalty,
    place_on_last_token,
    stop_properly,
    stop_turns_properly,
)


def test_clip():
    assert clip_rewards(torch.tensor([-11.0, -10.0, 0.5, 3.0]), -10.0, 2.0).tolist() == [-10.0, -10.0, 0.5, 2.0]
    assert clip_rewards(torch.tensor([-11.0, 3.0]), 1.0, 1.0).tolist() == [1.0, 1.0]


def test_clip_range_the_wrong_way_round():
    with pytest.raises(ValueError, match=r"--reward_clip_range .* got 1 -1"):
        clip_rewards(torch.zeros(2), 1, -1)


def test_reward_lands_on_the_last_action_token_only(normal, mask):
    rewards = normal(len(mask))
    out = place_on_last_token(rewards, mask)
    for b in range(len(mask)):
        actions = [t for t in range(mask.shape[1]) if mask[b, t]]
        expected = [0.0] * mask.shape[1]
        if actions:
            expected[actions[-1]] = rewards[b].item()
        assert out[b].tolist() == expected


def test_last_token_by_hand():
    """Five tokens: prompt, action, tool output, action, padding. The reward stands on the second action."""
    mask = torch.tensor([[False, True, False, True, False]])
    assert place_on_last_token(torch.tensor([2.0]), mask).tolist() == [[0.0, 0.0, 0.0, 2.0, 0.0]]


def test_kl_penalty(normal, mask):
    kl = normal()
    out = kl_penalty(kl, 0.3, mask)
    for b in range(len(mask)):
        expected = [-0.3 * kl[b, t].item() if mask[b, t] else 0.0 for t in range(mask.shape[1])]
        assert out[b].tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("length", "penalty"), [(0, 0.0), (60, 0.0), (80, 0.0), (81, -0.1), (90, -1.0), (100, -2.0)])
def test_overlong_penalty(length, penalty):
    """arXiv:2503.14476, eq. 13 with a longest answer of 100 and a buffer of 20, times 2."""
    out = overlong_penalty(torch.tensor([length]), longest=100, buffer=20, factor=2.0)
    assert out.item() == pytest.approx(penalty)


@pytest.mark.parametrize(("coef", "expected"), [(0.5, [1, 1, -0.5]), (0.0, [1, 0, 0]), (-3.0, [1, -3, -3])])
def test_stop_properly(coef, expected):
    out = stop_properly(torch.tensor([1.0, 2.0, -1.0]), torch.tensor([False, True, True]), coef)
    assert out.tolist() == expected


@pytest.mark.parametrize(("coef", "cut"), [(0.5, [0.0, 0.5, 0.0, -1.0, 0.0]), (-3.0, [0.0, 0.0, 0.0, 0.0, -3.0])])
def test_stop_turns_properly(coef, cut):
    parts = torch.tensor([[0.0, 1.0, 0.0, -2.0, 0.0]] * 2)
    mask = torch.tensor([[False, True, False, True, True]] * 2)
    out = stop_turns_properly(parts, torch.tensor([False, True]), coef, mask)
    assert out.tolist() == [parts[0].tolist(), cut]
