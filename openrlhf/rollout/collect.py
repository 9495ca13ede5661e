"""Prompts → samples: ask the engine, put the tokens together, ask the reward function."""

from __future__ import annotations

import math
from typing import Any

import torch

from openrlhf.config.groups import RolloutConfig
from openrlhf.rollout.agents import Agent
from openrlhf.rollout.conversations import hold_conversations
from openrlhf.rollout.engine import Completion, RolloutEngine, SamplingParams
from openrlhf.rollout.rewards import RewardFunction, call_reward_function, tell_failures
from openrlhf.types import Prompt, Sample


def sampling_params(rollout: RolloutConfig, stop_token_ids: tuple[int, ...], seed: int) -> SamplingParams:
    return SamplingParams(
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        max_new_tokens=rollout.generate_max_len,
        stop_token_ids=stop_token_ids,
        stop_strings=rollout.stop_strings or (),
        seed=seed,
    )


def collect(
    prompts: list[Prompt],
    engine: RolloutEngine,
    params: SamplingParams,
    n_samples: int,
    tokenizer: Any,
    reward_function: RewardFunction | None,
    agent: Agent | None = None,
) -> list[Sample]:
    """``n_samples`` samples a prompt, next to each other, in the order of the prompts.

    Rewards are set when there is an agent, which then holds the conversations, or a reward function; otherwise a
    reward model sets them later. Samples whose reward failed are left out. Raises RewardFailed when that is all of
    them.
    """
    # The group is the place in this list, not the prompt's id: a batch that reaches into the next episode may hold a
    # prompt twice, and those are two groups.
    asked = [(group, prompt) for group, prompt in enumerate(prompts) for _ in range(n_samples)]
    if agent is not None:
        return hold_conversations(agent, asked, engine, params, tokenizer)
    completions = engine.generate([prompt.tokens for _, prompt in asked], params)
    samples = [make_sample(p, completion, group) for (group, p), completion in zip(asked, completions, strict=True)]
    return samples if reward_function is None else with_rewards(samples, reward_function, tokenizer)


def make_sample(prompt: Prompt, completion: Completion, group: int) -> Sample:
    """The engine's own token ids are trained on: nothing is decoded and encoded again."""
    before, after = len(prompt.tokens), len(completion.token_ids)
    return Sample(
        tokens=torch.tensor(prompt.tokens + completion.token_ids, dtype=torch.int64),
        action_mask=torch.tensor([False] * before + [True] * after),
        rollout_log_probs=torch.tensor([0.0] * before + completion.log_probs),
        group=group,
        prompt=prompt.text,
        label=prompt.label,
        source=prompt.source,
        truncated=completion.truncated,
        weight_versions=torch.tensor([0] * before + completion.weight_versions),
    )


def with_rewards(samples: list[Sample], function: RewardFunction, tokenizer: Any) -> list[Sample]:
    """Call the user's function on the decoded texts, special tokens kept, and write its answer into the samples.

    Returns those that have a reward.
    """
    queries = [tokenizer.decode(s.tokens.tolist(), skip_special_tokens=False) for s in samples]
    answer = call_reward_function(function, queries, [s.prompt for s in samples], [s.label for s in samples])
    tell_failures(answer.failures, len(samples))
    for i, sample in enumerate(samples):
        sample.reward = answer.rewards[i]
        sample.score = answer.scores[i]
        logs = {name: values[i] for name, values in answer.extra_logs.items()}
        sample.metrics = {name: value for name, value in logs.items() if not math.isnan(value)}
    return [sample for i, sample in enumerate(samples) if i not in answer.failures]
