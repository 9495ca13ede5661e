from __future__ import annotations

import pytest
import torch

from openrlhf.algorithms.rewards import clip_rewards, kl_penalty, place_on_last_token


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
