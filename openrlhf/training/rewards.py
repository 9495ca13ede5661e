"""What a rollout batch is paid: the sum of all sources of rewards, and what length takes off it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from openrlhf.algorithms.rewards import overlong_penalty, stop_properly, stop_turns_properly
from openrlhf.config.commands import PPOConfig
from openrlhf.training.metric_names import REWARD_PARTS
from openrlhf.training.roles import Roles, gather
from openrlhf.types import Batch, Metrics, present


def add_rewards(batch: Batch, roles: Roles, weights: list[float], deadline_s: float) -> tuple[Batch, dict[str, Tensor]]:
    """Outcome rewards: the weighted sum of those of the reward models and of a function, which the batch holds.

    Returns those of each, (B,), too.
    """
    by_models = gather(*roles.reward.rewards(batch), deadline_s=deadline_s)
    named = {f"model_{number}": rewards for number, rewards in enumerate(by_models, start=1)}
    if batch.rewards is not None:
        named["function"] = batch.rewards
    if batch.turn_rewards is not None:  # an agent's, beside which there is no other reward
        batch = batch.fill(turn_rewards=weights[-1] * batch.turn_rewards)
    return batch.fill(rewards=weighted_rewards(named, weights)), named


def weighted_rewards(parts: Mapping[str, Tensor], weights: list[float]) -> Tensor:
    """(B,) rewards of each source → (B,) outcome rewards."""
    return torch.stack([w * rewards for w, rewards in zip(weights, parts.values(), strict=True)]).sum(dim=0)


def part_means(parts: Mapping[str, Tensor]) -> Metrics:
    """The mean reward of each source, where there are several."""
    means = {REWARD_PARTS + name: float(rewards.mean()) for name, rewards in parts.items()}
    return means if len(means) > 1 else {}


def shape_rewards(batch: Batch, config: PPOConfig) -> Batch:
    """What length takes off a reward: ``--overlong_buffer_len`` and ``--stop_properly_penalty_coef``."""
    reward, rewards, of_turns = config.reward, present(batch.rewards, "rewards"), batch.turn_rewards
    if reward.overlong_buffer_len is not None:
        lengths, longest = batch.action_mask.sum(dim=1), config.rollout.generate_max_len
        rewards = rewards + overlong_penalty(
            lengths, longest, reward.overlong_buffer_len, reward.overlong_penalty_factor
        )
    if reward.stop_properly_penalty_coef is not None:
        truncated, coef = present(batch.truncated, "truncated"), reward.stop_properly_penalty_coef
        rewards = stop_properly(rewards, truncated, coef)
        if of_turns is not None:
            of_turns = stop_turns_properly(of_turns, truncated, coef, batch.action_mask)
    return batch.fill(rewards=rewards, turn_rewards=of_turns)
