"""Rows → prompts for the policy to answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from openrlhf.config.groups import DataConfig, PromptConfig
from openrlhf.data.chat import as_messages, render, says_something
from openrlhf.data.encode import token_ids
from openrlhf.data.report import DropReport, UnusableRow
from openrlhf.data.rows import Row, cell, fill_template, plain_text
from openrlhf.types import Prompt


def load_prompts(
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    prompts: PromptConfig,
    flag: str = "--prompt_data",
    ending: str = "",
) -> tuple[list[Prompt], DropReport]:
    """One prompt a usable row, in order; ``id`` is the row number, counted from 0.

    ``text`` is the whole rendered prompt and ``ending`` behind it. Of more than ``prompt_max_len`` tokens the last are
    kept, so that the generation prompt stays. The column ``datasource`` names the source. Empty prompts are dropped.

    ``flag`` is the flag the rows came from, for messages. Raises ValueError for a row that does not fit the flags,
    naming it, when no row is usable, and with ``--strict_data`` for any row that is dropped or cut.
    """
    report = DropReport()
    read: list[Prompt] = []
    for number, row in enumerate(rows):
        try:
            text, label = _text(row, tokenizer, data) + ending, _label(row, prompts.label_key)
            read.append(Prompt(number, text, [], label, str(row.get("datasource") or "default")))
        except UnusableRow as kind:
            report.drop(str(kind), number, row)
        except ValueError as error:
            raise ValueError(f"{flag} row {number}: {error}") from error
    report.kept = len(read)
    encoded = token_ids(tokenizer, [prompt.text for prompt in read])
    limit = prompts.prompt_max_len
    for prompt, tokens in zip(read, encoded, strict=True):
        if len(tokens) > limit:
            report.shorten("prompt over --prompt_max_len, its end is kept,", prompt.id, prompt.text)
    report.finish(flag, data.strict_data)
    return [replace(prompt, tokens=tokens[-limit:]) for prompt, tokens in zip(read, encoded, strict=True)], report


def _text(row: Row, tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> str:
    value: Any = cell(row, data.input_key, "--input_key")
    if not data.apply_chat_template:
        question = plain_text(value, "--input_key")
        if not question.strip():
            raise UnusableRow("empty prompt")
        return fill_template(data.input_template, question)
    if not value or not any(map(says_something, messages := as_messages(value))):
        raise UnusableRow("empty prompt")
    return render(tokenizer, messages, generation_prompt=True)


def _label(row: Row, key: str | None) -> str:
    label = cell(row, key, "--label_key") if key else None
    return "" if label is None else str(label)
