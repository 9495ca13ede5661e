"""What a step of RL logs of its rollout batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from openrlhf.config.commands import PPOConfig
from openrlhf.training.ahead import Asked, mixed, staleness
from openrlhf.training.filtering import groups
from openrlhf.training.metric_names import REWARD_PARTS
from openrlhf.training.rewards import part_means
from openrlhf.types import Batch, Metrics, Sample, merge_metrics, present


def rollout_metrics(
    config: PPOConfig,
    rollout: Asked,
    sampled: list[Sample],
    samples: list[Sample],
    batch: Batch,
    parts: Mapping[str, Tensor],
) -> Metrics:
    """Of the samples that came back for ``rollout``, those of them that the step learns from, the batch made of these,
    and the (B,) rewards of each source."""
    return {
        **sample_metrics(samples, batch),
        **staleness(samples, rollout.step),
        **({"mixed": mixed(samples)} if config.rollout.partial_rollout else {}),
        **part_means(parts),
        **left_out(config, len(rollout.prompts), sampled, len(samples)),
    }


def left_out(config: PPOConfig, prompts: int, sampled: list[Sample], kept: int) -> Metrics:
    """Which share was left out, where that may happen: of the prompts, and of the samples of the others without a
    reward and then for their age."""
    metrics: Metrics = {}
    if config.rollout.dynamic_filtering:
        metrics["groups_kept"] = groups(sampled) / prompts
        prompts = groups(sampled)
    if config.reward.on_reward_failure == "drop":
        metrics["reward/invalid"] = 1 - len(sampled) / (prompts * config.rollout.n_samples_per_prompt)
    if config.rollout.max_staleness is not None:
        metrics["stale"] = 1 - kept / len(sampled)
    return metrics


def sample_metrics(samples: list[Sample], batch: Batch) -> Metrics:
    """What the rollout batch looks like, before the update."""
    lengths = batch.action_mask.sum(dim=1).float()
    rewards, advantages = present(batch.rewards, "rewards"), present(batch.advantages, "advantages")
    metrics = {
        "reward": float(rewards.mean()),
        "reward_std": float(rewards.std(correction=0)),
        "response_length": float(lengths.mean()),
        "response_length_max": float(lengths.max()),
        "truncated": sum(s.truncated for s in samples) / len(samples),
        "advantage_std": float(advantages[batch.action_mask].std(correction=0)),
    }
    if batch.scores is not None:
        metrics["score"] = float(batch.scores.mean())
    metrics |= dead_groups(rewards, present(batch.groups, "groups"))
    parts = merge_metrics([s.metrics for s in samples])
    return {**metrics, **{REWARD_PARTS + name: value for name, value in parts.items()}}


def dead_groups(rewards: Tensor, groups: Tensor) -> Metrics:
    """Which share of the groups of several samples has one same reward, (B,) and (B,): they teach nothing."""
    numbers, place, counts = groups.unique(return_inverse=True, return_counts=True)
    empty = torch.zeros(len(numbers), dtype=rewards.dtype)
    least, most = (empty.scatter_reduce(0, place, rewards, by, include_self=False) for by in ("amin", "amax"))
    several = counts > 1
    return {"dead_groups": float((least == most)[several].float().mean())} if several.any() else {}
