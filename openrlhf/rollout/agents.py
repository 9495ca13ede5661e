"""Multi-turn rollouts: what the file of ``--agent_func_path`` defines, and how a conversation becomes a sample.

The contract, version 1; methods may be async or plain, and every conversation has an object of its own. The file has

    class AgentInstance:                           an environment: its texts answer the policy's
        reset(states) -> {"observation"}
        step(states) -> {"rewards", "done"}        and if wanted "environment_feedback", "scores", "sampling_params",
                                                   "extra_logs"
or
    class AgentExecutor:                           the whole conversation in the file's hand
        execute(prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine)
            -> {"observation_tokens", "action_ranges", "reward"}       and if wanted "scores", "extra_logs", "truncated"
                                                   "turn_rewards", one an action range, may stand in place of "reward"

Tokens go in and tokens come out: what the policy sampled is never decoded and encoded again, a text of the environment
is encoded once, on its own, and only the policy's own tokens are learned.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Protocol

import torch

from openrlhf.config.commands import PPOConfig
from openrlhf.rollout.engine import Completion, SamplingParams
from openrlhf.rollout.rewards import RewardFailed, run_user_file
from openrlhf.types import Prompt, Sample

log = logging.getLogger(__name__)

CONTRACT = 1  # a file may say for which version it was written: AGENT_CONTRACT = 1
FLAG = "--agent_func_path"


class LLMEngine(Protocol):
    """The policy, as one conversation sees it."""

    prompt_tokens: list[int]  # those of the prompt, of which --prompt_max_len are kept

    async def generate(
        self, token_ids: Sequence[int], sampling_params: SamplingParams | Mapping[str, Any] | None = None
    ) -> Completion: ...


@dataclass(frozen=True)
class Agent:
    """A loaded file. ``timeout_s`` is for the file's own code between two answers of the policy."""

    file: str
    new_executor: Callable[[], Any]  # for one conversation
    max_length: int  # tokens of a whole conversation
    timeout_s: float
    drops_failures: bool


@dataclass(frozen=True)
class Exchange:
    """What the policy was asked and what it answered."""

    asked: list[int]
    answer: Completion


def agent_of(config: PPOConfig) -> Agent | None:
    """What ``--agent_func_path`` names. Raises ValueError when the file does not define an agent."""
    file = config.rollout.agent_func_path
    if file is None:
        return None
    return Agent(
        file,
        load_executor(file),
        config.prompts.prompt_max_len + config.rollout.generate_max_len,
        config.reward.reward_timeout,
        config.reward.on_reward_failure == "drop",
    )


def load_executor(file: str) -> Callable[[], Any]:
    """What makes an object with ``execute``. Raises RewardFailed when the file does not keep the contract."""
    defined = run_user_file(file, FLAG, "class AgentInstance or AgentExecutor")
    version = defined.get("AGENT_CONTRACT", CONTRACT)
    if version != CONTRACT:
        raise RewardFailed(
            f"{FLAG} {file}: it is written for version {version!r} of the contract, this is version {CONTRACT}"
        )
    has = [name for name in ("AgentInstance", "AgentExecutor") if name in defined]
    if len(has) != 1:
        raise RewardFailed(f"{FLAG} {file}: define one of the classes AgentInstance and AgentExecutor in it")
    made: Callable[[], Any] = defined[has[0]]
    for method in ("reset", "step") if has == ["AgentInstance"] else ("execute",):
        if method not in dir(made):
            raise RewardFailed(f"{FLAG} {file}: {has[0]} must have a method {method}")
    return made if has == ["AgentExecutor"] else lambda: MultiTurn(made())


class MultiTurn:
    """``execute`` for an environment: reset, then policy and step in turn until it is done or there is no room.

    Each step's reward is that of the turn before it; score and logs of the sample are those of the last step.
    """

    def __init__(self, instance: Any) -> None:
        self.instance = instance

    async def execute(
        self,
        prompt: str,
        label: str,
        sampling_params: SamplingParams,
        max_length: int,
        hf_tokenizer: Any,
        llm_engine: LLMEngine,
    ) -> dict[str, Any]:
        start = await settled(self.instance.reset({"observation": prompt, "label": label}))
        text = required(start, "reset", "observation")
        tokens = list(llm_engine.prompt_tokens) if text == prompt else encode(hf_tokenizer, text)
        params: Any = sampling_params
        answer: dict[str, Any] = {"turn_rewards": [], "extra_logs": {}, "action_ranges": []}
        while True:
            completion = await llm_engine.generate(tokens, params)
            answer["action_ranges"].append((len(tokens), len(tokens) + len(completion.token_ids)))
            tokens += completion.token_ids
            action = hf_tokenizer.decode(completion.token_ids, skip_special_tokens=False)
            states = {"observation_text": text, "action_text": action, "label": label, "sampling_params": params}
            step = await settled(self.instance.step(states))
            answer["turn_rewards"].append(number("rewards", required(step, "step", "rewards")))
            answer["scores"] = step.get("scores")
            answer["extra_logs"] |= step.get("extra_logs") or {}
            done = bool(required(step, "step", "done"))
            feedback = "" if done else step.get("environment_feedback") or ""
            told = encode(hf_tokenizer, feedback)
            full = len(tokens) + len(told) >= max_length
            if done or full:
                return {**answer, "observation_tokens": tokens, "truncated": completion.truncated or not done}
            tokens += told
            text += action + feedback
            params = step.get("sampling_params") or params


def make_sample(answer: Any, said: Sequence[Exchange], prompt: Prompt, group: int, max_length: int) -> Sample:
    """The sample of what ``execute`` answered, when all its actions are the policy's: ``said`` is what that sampled.

    Raises RewardFailed when something is missing, not a number, or sampled by nobody.
    """
    tokens = [int(token) for token in required(answer, "execute", "observation_tokens")]
    if len(tokens) > max_length:
        raise RewardFailed(
            f"execute returned {len(tokens)} tokens; --prompt_max_len and --generate_max_len allow {max_length}"
        )
    mask, log_probs, versions = [False] * len(tokens), [0.0] * len(tokens), [0] * len(tokens)
    used, end = [], 0
    for start, stop in required(answer, "execute", "action_ranges"):
        if not end <= start < stop <= len(tokens):
            raise RewardFailed(
                f"execute returned the action range ({start}, {stop}) of {len(tokens)} tokens: ranges must be in "
                "order, apart and not empty"
            )
        exchange = sampled(said, tokens, start, stop)
        mask[start:stop] = [True] * (stop - start)
        log_probs[start:stop] = exchange.answer.log_probs[: stop - start]
        versions[start:stop] = exchange.answer.weight_versions[: stop - start]
        used.append(exchange.answer)
        end = stop
    if not used:
        raise RewardFailed("execute returned no action_ranges: there is nothing to learn")
    rewards = turn_rewards(answer, len(used))
    reward, by_token = sum(rewards), torch.zeros(len(tokens))
    by_token[[stop - 1 for _, stop in answer["action_ranges"]]] = torch.tensor(rewards)
    score, logs = answer.get("scores"), answer.get("extra_logs") or {}
    return Sample(
        tokens=torch.tensor(tokens, dtype=torch.int64),
        action_mask=torch.tensor(mask),
        rollout_log_probs=torch.tensor(log_probs),
        group=group,
        prompt=prompt.text,
        label=prompt.label,
        source=prompt.source,
        reward=reward,
        turn_rewards=by_token,
        score=reward if score is None else number("scores", score),
        truncated=bool(answer.get("truncated", used[-1].truncated)),
        weight_versions=torch.tensor(versions),
        metrics={"turns": float(len(used)), **{name: number(name, value) for name, value in logs.items()}},
    )


def turn_rewards(answer: Mapping[str, Any], turns: int) -> list[float]:
    """The reward of each action range; one ``reward`` for all of them is that of the last. Raises RewardFailed."""
    given = answer.get("turn_rewards")
    if given is None:
        return [*[0.0] * (turns - 1), number("reward", required(answer, "execute", "reward"))]
    if answer.get("reward") is not None:
        raise RewardFailed("execute returned both reward and turn_rewards, which add up to it: leave one out")
    if not isinstance(given, Sequence) or len(given) != turns:
        raise RewardFailed(f"turn_rewards must be a list of {turns} numbers, one an action range, not {given!r:.200}")
    return [number(f"turn_rewards[{place}]", value) for place, value in enumerate(given)]


def sampled(said: Sequence[Exchange], tokens: list[int], start: int, stop: int) -> Exchange:
    """Where the policy answered the tokens before ``start`` with those up to ``stop``, or with more."""
    for exchange in said:
        if exchange.asked == tokens[:start] and exchange.answer.token_ids[: stop - start] == tokens[start:stop]:
            return exchange
    raise RewardFailed(
        f"execute returned the tokens {start} to {stop} as an action, but the policy did not answer them to the tokens "
        "before: hand on its token_ids as they are, and do not encode a text of it again"
    )


def own_params(asked: SamplingParams | Mapping[str, Any] | None, usual: SamplingParams, room: int) -> SamplingParams:
    """What a conversation asked for, as far as there is room. Raises RewardFailed when it cannot be."""
    if room < 1:
        raise RewardFailed(
            "the agent wanted an answer to a conversation that has all the tokens of --prompt_max_len and "
            "--generate_max_len"
        )
    try:
        wanted = asked if isinstance(asked, SamplingParams) else replace(usual, **(asked or {}))
    except TypeError as error:
        raise RewardFailed(f"the agent's sampling_params {asked!r:.200} are not those of SamplingParams") from error
    for name in ("temperature", "repetition_penalty"):
        if vars(wanted)[name] != vars(usual)[name]:
            raise RewardFailed(
                f"the agent's sampling_params change {name} from {vars(usual)[name]} to {vars(wanted)[name]}: the "
                "policy is trained as it was set for the run, so leave it"
            )
    if wanted.top_p < usual.top_p:
        warn_once(
            f"{FLAG}: the agent samples with top_p {wanted.top_p:g}, from a part of the policy, and the log-probs that "
            "are trained are those of the whole"
        )
    return replace(wanted, max_new_tokens=min(wanted.max_new_tokens, room))


@cache
def warn_once(text: str) -> None:
    log.warning(text)


async def settled(result: Any) -> Any:
    """What an async method or a plain one answers."""
    return await result if inspect.isawaitable(result) else result


def required(answer: Any, method: str, name: str) -> Any:
    if not isinstance(answer, Mapping) or answer.get(name) is None:
        kind = sorted(map(str, answer)) if isinstance(answer, Mapping) else type(answer).__name__
        raise RewardFailed(f"{method} must return a dict with {name!r}, not {kind}")
    return answer[name]


def number(name: str, value: Any) -> float:
    try:
        converted = float(value)
    except (TypeError, ValueError) as error:
        raise RewardFailed(f"{name} must be a number, not {value!r:.200}") from error
    if not math.isfinite(converted):
        raise RewardFailed(f"{name} is {converted}; it must be a finite number")
    return converted


def encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids) if text else []
