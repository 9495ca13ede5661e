"""The reward function, server or agent, tried on a few rows before anything is sampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from openrlhf.check.findings import Severity
from openrlhf.config.commands import PPOConfig
from openrlhf.rollout.agents import agent_of
from openrlhf.rollout.sources import reward_function
from openrlhf.rollout.trial import kinds, remarks, try_answers
from openrlhf.types import Prompt, Sample

TRIED = 4  # prompts


def look_at_rewards(config: PPOConfig, samples: Sequence[Sample], tokenizer: Any) -> Iterator[tuple[Severity, str]]:
    """Answers of every kind to the first prompts, each of which is a sample without a response."""
    if agent_of(config) is not None:
        yield "ok", f"--agent_func_path {config.rollout.agent_func_path} can be loaded"
    # Whatever fails is told, and nobody knows the function yet: as `openrlhf reward` does.
    chunk, strict = config.rollout.micro_rollout_batch_size, replace(config.reward, on_reward_failure="stop")
    function = reward_function(strict, chunk, isolated=True)
    if function is None:
        return
    prompts = [Prompt(s.group, s.prompt, s.tokens.tolist(), s.label, s.source) for s in samples[:TRIED]]
    answers = kinds(prompts, tokenizer, config.rollout.generate_max_len)
    tried = [try_answers(kind, said, prompts, function, tokenizer) for kind, said in answers.items()]
    where = f"--remote_rm_url {config.reward.remote_rm_url}"
    paid = ", ".join(f"{each.kind} ones {sum(each.rewards) / len(prompts):.4g}" for each in tried)
    yield "ok", f"{where}: of {len(prompts)} rows, answers are paid: {paid}"
    yield from (("warning", f"{where}: {remark}") for remark in remarks(tried))
