"""A conversation as the tokens of a prompt: what was said so far, and what is said now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from openrlhf.config.groups import DataConfig
from openrlhf.data.chat import render
from openrlhf.data.encode import token_ids
from openrlhf.data.rows import fill_template


@dataclass(frozen=True)
class Exchange:
    question: str
    answer: str


@dataclass(frozen=True)
class Style:
    """How a conversation is written: ``before`` comes first, ``after`` stands at the end of the prompt."""

    data: DataConfig
    before: str = ""
    after: str = ""


def conversation_text(said: Sequence[Exchange], question: str, tokenizer: PreTrainedTokenizerBase, style: Style) -> str:
    """The prompt whose continuation answers ``question``. Raises ValueError where the chat template refuses it."""
    if style.data.apply_chat_template:
        messages = [{"role": "system", "content": style.before}] if style.before else []
        for exchange in said:
            messages += [
                {"role": "user", "content": exchange.question},
                {"role": "assistant", "content": exchange.answer},
            ]
        messages.append({"role": "user", "content": question})
        return render(tokenizer, messages, generation_prompt=True) + style.after
    turns = [fill_template(style.data.input_template, e.question) + e.answer + "\n" for e in said]
    return style.before + "".join(turns) + fill_template(style.data.input_template, question) + style.after


def conversation_tokens(
    said: Sequence[Exchange], question: str, tokenizer: PreTrainedTokenizerBase, style: Style, longest: int
) -> tuple[list[int], int]:
    """The tokens of the prompt, at most ``longest``, and how many exchanges were left out of it, the first ones.

    Raises ValueError when the question alone is longer.
    """
    for forgotten in range(len(said) + 1):
        text = conversation_text(said[forgotten:], question, tokenizer, style)
        tokens = token_ids(tokenizer, [text])[0]
        if len(tokens) <= longest:
            return tokens, forgotten
    raise ValueError(f"this has {len(tokens)} tokens; --max_len leaves room for {longest}")
