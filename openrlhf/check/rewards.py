"""The reward function, server or agent, tried on a few rows before anything is sampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from openrlhf.check.findings import Severity
from openrlhf.config.commands import PPOConfig
from openrlhf.rollout.agents import agent_of
from openrlhf.rollout.rewards import call_reward_function, tell_failures
from openrlhf.rollout.sources import reward_function
from openrlhf.types import Sample

TRIED = 4  # prompts
EVASIVE = "I do not know."


def look_at_rewards(config: PPOConfig, prompts: Sequence[Sample], eos: str) -> Iterator[tuple[Severity, str]]:
    """Two answers to each of the first prompts: its label, and one that evades."""
    if agent_of(config) is not None:
        yield "ok", f"--agent_func_path {config.rollout.agent_func_path} can be loaded"
    function = reward_function(config.reward, config.rollout.micro_rollout_batch_size, isolated=True)
    if function is None:
        return
    tried = list(prompts[:TRIED])
    answers = [sample.label for sample in tried] + [EVASIVE] * len(tried)
    asked = [sample.prompt for sample in tried] * 2
    queries = [prompt + answer + eos for prompt, answer in zip(asked, answers, strict=True)]
    found = call_reward_function(function, queries, asked, [sample.label for sample in tried] * 2)
    tell_failures(found.failures, len(queries))
    first, second = found.rewards[: len(tried)], found.rewards[len(tried) :]
    where = f"--remote_rm_url {config.reward.remote_rm_url}"
    yield "ok", f"{where}: the labels as answers get {_numbers(first)}; {EVASIVE!r} gets {_numbers(second)}"
    if found.failures:
        place, why = next(iter(found.failures.items()))
        yield "warning", f"{where}: no reward for {len(found.failures)} of {len(queries)}, as row {place}: {why}"
    if len(set(found.rewards)) == 1 and not any(found.extra_logs.values()):
        yield (
            "warning",
            f"{where} gives every answer that was tried {found.rewards[0]:g}: if those of the model get the same, "
            "nothing is learnt",
        )


def _numbers(rewards: Sequence[float]) -> str:
    return ", ".join(f"{reward:g}" for reward in rewards)
