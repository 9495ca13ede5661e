"""How often the policy is right: pass@1 and pass@n of each source of evaluation prompts."""

from __future__ import annotations

from collections.abc import Sequence

from openrlhf.training.metric_names import pass_rate
from openrlhf.types import Metrics


def pass_rates(sources: Sequence[str], groups: Sequence[int], rewards: Sequence[float], asked: int) -> Metrics:
    """Entry i speaks of sample i: its prompt's source and group, and its reward; ``asked`` samples a prompt.

    Of each source the mean over its prompts of the mean reward, and of the highest reward. A sample that was left out
    is missing in both.
    """
    by_source: dict[str, dict[int, list[float]]] = {}
    for source, group, reward in zip(sources, groups, rewards, strict=True):
        by_source.setdefault(source, {}).setdefault(group, []).append(reward)
    rates: Metrics = {}
    for source, prompts in sorted(by_source.items()):
        rates[pass_rate(source, asked)] = _mean([max(own) for own in prompts.values()])
        rates[pass_rate(source, 1)] = _mean([_mean(own) for own in prompts.values()])
    return rates


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
