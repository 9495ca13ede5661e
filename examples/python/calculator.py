"""A tool: the policy may write ``<calc>3+4</calc>`` once, is told the result, and then answers.

The label of a prompt is its answer. The whole conversation is in this file's hand: an environment like ``guess.py``
would do as well, this is the other form. A right answer pays 1.
"""

from __future__ import annotations

import re
from typing import Any

AGENT_CONTRACT = 1
CALL = re.compile(r"<calc>(\d{1,6})\+(\d{1,6})</calc>")
END = re.compile(r"<\|[^|]*\|>")  # tokens that end a turn


class AgentExecutor:
    """One conversation."""

    async def execute(
        self, prompt: str, label: str, sampling_params: Any, max_length: int, hf_tokenizer: Any, llm_engine: Any
    ) -> dict[str, Any]:
        tokens = list(llm_engine.prompt_tokens)  # not encoded again, and cut to --prompt_max_len
        actions = []

        async def turn() -> str:
            """The policy goes on: its own token ids are kept, the text is for us."""
            nonlocal tokens
            completion = await llm_engine.generate(tokens, sampling_params)
            actions.append((len(tokens), len(tokens) + len(completion.token_ids)))
            tokens = tokens + completion.token_ids
            return END.sub("", hf_tokenizer.decode(completion.token_ids))

        text = await turn()
        called = CALL.search(text)
        if called is not None:
            told = hf_tokenizer(f" {calculate(called)} ", add_special_tokens=False).input_ids
            if len(tokens) + len(told) < max_length:
                tokens = tokens + told
                text = await turn()
        right = float(text.strip() == label)
        return {
            "observation_tokens": tokens,
            "action_ranges": actions,
            "reward": right,
            "scores": right,
            "extra_logs": {"calls": float(called is not None)},
        }


def calculate(call: re.Match[str]) -> int:
    return int(call[1]) + int(call[2])
