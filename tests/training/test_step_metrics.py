"""What a step logs of its rollout batch."""

from __future__ import annotations

import torch

from openrlhf.training.step_metrics import dead_groups


def test_dead_groups_are_those_of_several_samples_with_one_reward() -> None:
    rewards = torch.tensor([1.0, 0.0, 1.0, 1.0, 2.0, 3.0, float("nan"), 3.0, float("nan")])
    groups = torch.tensor([5, 0, 5, 0, 9, 2, 7, 2, 7])
    assert dead_groups(rewards, groups) == {"dead_groups": 0.5}  # 5 and 2, not 0 and 7; 9 has one sample
    assert dead_groups(rewards[:2], groups[:2]) == {}
