"""Rows → pairs of samples, a chosen and a rejected answer to one prompt, for reward models and DPO."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from transformers import PreTrainedTokenizerBase

from openrlhf.config.groups import DataConfig, PairConfig
from openrlhf.data.chat import MarkedText, Message, as_messages, mark_answer, says_something
from openrlhf.data.encode import Encoded, encode, eos_id
from openrlhf.data.preview import Title
from openrlhf.data.report import DropReport, UnusableRow
from openrlhf.data.rows import Row, cell, fill_template, plain_text
from openrlhf.types import Metrics, Sample

Sides = tuple[MarkedText, MarkedText]  # chosen, rejected
Reader = Callable[[Row], Sides]

# Pairs handed to the tokenizer at once; it works on their texts in parallel.
CHUNK = 500


@dataclass(frozen=True)
class MarkedPair:
    row: int
    sides: Sides
    metrics: Metrics  # of the chosen side


def _chosen_title(sample: Sample) -> str:
    margin = sample.metrics.get("margin")
    return "chosen" if margin is None else f"chosen by a margin of {margin:g}"


TITLES: tuple[Title, Title] = (_chosen_title, lambda sample: "rejected")


def paired_samples(
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    pairs: PairConfig,
    drop_long_prompts: bool,
    flag: str = "--dataset",
) -> tuple[list[tuple[Sample, Sample]], DropReport]:
    """(chosen, rejected) for each usable row, in order; ``group`` of both is the row number, counted from 0.

    ``action_mask`` marks the tokens of the answer. A text ends in EOS, which belongs to the answer: the id is appended
    where the tokens do not end in it, and replaces the last token of a text that was cut at ``max_len``. A column
    ``margin`` becomes ``metrics["margin"]`` of the chosen side where it is not empty.

    Rows are dropped and reported when prompt or answer is empty, the two sides have different prompts, their tokens are
    the same, whole or once cut, or, with ``drop_long_prompts``, the prompt has ``max_len`` − 2 tokens or more.

    ``flag`` is the flag the rows came from, for messages. Raises ValueError for a row that does not fit the flags,
    naming it, when no row is usable, and with ``--strict_data`` for any row that is dropped or cut.
    """
    eos = eos_id(tokenizer)
    report = DropReport()
    kept: list[tuple[Sample, Sample]] = []
    marked = _marked_pairs(rows, _reader(tokenizer, data, pairs), report, flag)
    while chunk := list(islice(marked, CHUNK)):
        encoded = encode(tokenizer, [text for pair in chunk for text in pair.sides])
        for pair, chosen, rejected in zip(chunk, encoded[::2], encoded[1::2], strict=True):
            try:
                samples = _pair(pair, chosen, rejected, pairs.max_len, eos, drop_long_prompts)
            except UnusableRow as kind:
                report.drop(str(kind), pair.row, pair.sides[0].text)
                continue
            if _lost_tokens(samples[0], chosen) or _lost_tokens(samples[1], rejected):
                report.shorten("text over --max_len", pair.row, pair.sides[0].text)
            kept.append(samples)
    report.kept = len(kept)
    report.finish(flag, data.strict_data)
    return kept, report


def _reader(tokenizer: PreTrainedTokenizerBase, data: DataConfig, pairs: PairConfig) -> Reader:
    if data.apply_chat_template:
        return lambda row: _chat(row, tokenizer, pairs)
    if data.input_template and not pairs.prompt_key:
        raise ValueError("--input_template goes around the prompt; name its column with --prompt_key")
    return lambda row: _plain(row, data, pairs)


def _marked_pairs(rows: Iterable[Row], read: Reader, report: DropReport, flag: str) -> Iterator[MarkedPair]:
    for number, row in enumerate(rows):
        try:
            yield MarkedPair(number, read(row), _margin(row))
        except UnusableRow as kind:
            report.drop(str(kind), number, row)
        except ValueError as error:
            raise ValueError(f"{flag} row {number}: {error}") from error


def _margin(row: Row) -> Metrics:
    margin = row.get("margin")
    if margin is None:
        return {}
    if not isinstance(margin, (int, float)) or not math.isfinite(margin):
        raise ValueError(f"the column 'margin' holds {margin!r:.80}, which is not a finite number")
    return {"margin": float(margin)}


def _plain(row: Row, data: DataConfig, pairs: PairConfig) -> Sides:
    prompt = ""
    if pairs.prompt_key:
        question = plain_text(cell(row, pairs.prompt_key, "--prompt_key"), "--prompt_key")
        if not question.strip():
            raise UnusableRow("empty prompt")
        prompt = fill_template(data.input_template, question)
    chosen = plain_text(cell(row, pairs.chosen_key, "--chosen_key"), "--chosen_key")
    rejected = plain_text(cell(row, pairs.rejected_key, "--rejected_key"), "--rejected_key")
    return _plain_side(prompt, chosen, "chosen"), _plain_side(prompt, rejected, "rejected")


def _plain_side(prompt: str, answer: str, side: str) -> MarkedText:
    if not answer.strip():
        raise UnusableRow(f"empty {side}")
    text = (prompt + answer).rstrip("\n")
    return MarkedText(text, ((len(prompt), len(text)),))


def _chat(row: Row, tokenizer: PreTrainedTokenizerBase, pairs: PairConfig) -> Sides:
    chosen = _messages(row, pairs.chosen_key, "chosen", pairs.prompt_key)
    rejected = _messages(row, pairs.rejected_key, "rejected", pairs.prompt_key)
    if pairs.prompt_key:
        value = cell(row, pairs.prompt_key, "--prompt_key")
        prompt = as_messages(value) if value else []
        _check_answer_alone(chosen, "chosen")
        _check_answer_alone(rejected, "rejected")
    else:
        prompt, chosen, rejected = _split_prompt(chosen, rejected)
    if not any(map(says_something, prompt)):
        raise UnusableRow("empty prompt")
    if prompt[0]["role"] == "assistant":
        raise UnusableRow("conversation that the assistant begins")
    return _chat_side(tokenizer, prompt, chosen, "chosen"), _chat_side(tokenizer, prompt, rejected, "rejected")


def _messages(row: Row, key: str, side: str, prompt_key: str | None) -> list[Message]:
    value = cell(row, key, f"--{side}_key")
    if not value:
        raise UnusableRow(f"empty {side}")
    if isinstance(value, str) and not prompt_key:
        raise ValueError(f"the column of --{side}_key holds text, not messages; name the prompt with --prompt_key")
    return as_messages(value, role="assistant")


def _check_answer_alone(answer: list[Message], side: str) -> None:
    # Else the prompt would be in the text twice.
    if answer[0]["role"] != "assistant":
        raise ValueError(
            f"the answer in the column of --{side}_key begins with the role {answer[0]['role']!r}; "
            "where it holds the whole conversation, leave out --prompt_key"
        )


def _split_prompt(chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], list[Message], list[Message]]:
    if len(chosen) == 1:
        raise UnusableRow("answer without a prompt (where it has its own column, set --prompt_key)")
    if chosen[:-1] != rejected[:-1]:
        raise UnusableRow("chosen and rejected have different prompts")
    return chosen[:-1], chosen[-1:], rejected[-1:]


def _chat_side(
    tokenizer: PreTrainedTokenizerBase, prompt: list[Message], answer: list[Message], side: str
) -> MarkedText:
    if answer[-1]["role"] != "assistant":
        raise UnusableRow(f"{side} that does not end with the assistant")
    if not any(map(says_something, answer)):
        raise UnusableRow(f"empty {side}")
    return mark_answer(tokenizer, prompt, answer)


def _pair(
    pair: MarkedPair, chosen: Encoded, rejected: Encoded, max_len: int, eos: int, drop_long_prompts: bool
) -> tuple[Sample, Sample]:
    for side, (_, mask) in (("chosen", chosen), ("rejected", rejected)):
        # A chat template or tokenizer may leave nothing of an answer.
        if True not in mask:
            raise UnusableRow(f"empty {side}")
        if drop_long_prompts and mask.index(True) >= max_len - 2:
            raise UnusableRow("prompt of --max_len - 2 tokens or more")
    chosen, rejected = _ended(chosen, eos), _ended(rejected, eos)
    if chosen[0] == rejected[0]:
        raise UnusableRow("chosen and rejected are the same")
    chosen, rejected = _cut(chosen, max_len, eos), _cut(rejected, max_len, eos)
    if chosen[0] == rejected[0]:
        raise UnusableRow("chosen and rejected that differ only beyond --max_len")
    return _sample(chosen, pair.row, pair.metrics), _sample(rejected, pair.row, {})


def _ended(encoded: Encoded, eos: int) -> Encoded:
    tokens, mask = encoded
    return (tokens, mask) if tokens[-1] == eos else ([*tokens, eos], [*mask, True])


def _cut(encoded: Encoded, max_len: int, eos: int) -> Encoded:
    tokens, mask = encoded
    return (tokens, mask) if len(tokens) <= max_len else ([*tokens[: max_len - 1], eos], mask[:max_len])


def _sample(encoded: Encoded, row: int, metrics: Metrics) -> Sample:
    tokens, mask = encoded
    # Nothing predicts the first token, which is part of the answer where there is no prompt.
    return Sample(torch.tensor(tokens), torch.tensor([False, *mask[1:]]), group=row, metrics=metrics)


def _lost_tokens(sample: Sample, encoded: Encoded) -> bool:
    return sample.tokens[: len(encoded[0])].tolist() != encoded[0]
