"""Rows → samples for supervised training; ``action_mask`` marks the tokens that carry loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from transformers import PreTrainedTokenizerBase

from openrlhf.config.groups import DataConfig, DatasetConfig
from openrlhf.data.chat import MarkedText, Message, as_messages, mark_answer, mark_turns, says_something
from openrlhf.data.encode import Encoded, encode, eos_id
from openrlhf.data.report import DropReport, UnusableRow
from openrlhf.data.rows import Row, cell, fill_template, plain_text
from openrlhf.types import Sample

Reader = Callable[[Row], MarkedText]

# Texts handed to the tokenizer at once; it works on them in parallel.
CHUNK = 1000


def sft_samples(
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    dataset: DatasetConfig,
    flag: str = "--dataset",
) -> tuple[list[Sample], DropReport]:
    """One sample a usable row, in order; ``group`` is the row number, counted from 0.

    A text ends in EOS, which carries loss: the id is appended where the tokens do not end in it, and replaces the last
    token of an answer that was cut at ``max_len``. Rows are dropped and reported when prompt or answer is empty or the
    prompt has ``max_len`` − 2 tokens or more. With ``--pretrain_mode`` the text is taken as it is, and every token
    carries loss but the first, which nothing predicts.

    ``flag`` is the flag the rows came from, for messages. Raises ValueError for a row that does not fit the flags,
    naming it, when no row is usable, and with ``--strict_data`` for any row that is dropped or cut.
    """
    report = DropReport()
    kept = encoded_rows(rows, tokenizer, data, dataset, report, flag)
    samples = [Sample(torch.tensor(ids), torch.tensor(mask), group=number) for number, _, (ids, mask) in kept]
    report.finish(flag, data.strict_data)
    return samples, report


def encoded_rows(
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    dataset: DatasetConfig,
    report: DropReport,
    flag: str,
) -> Iterator[tuple[int, MarkedText, Encoded]]:
    """Row number, text and what the model reads, of each usable row; ``report`` counts them all. Raises ValueError
    for a row that does not fit the flags."""
    read, finish = _reader(tokenizer, data, dataset), _finisher(tokenizer, dataset)
    for chunk in _chunks(_texts(rows, read, report, flag)):
        encoded = encode(tokenizer, [text for _, text in chunk])
        for (number, marked), tokens in zip(chunk, encoded, strict=True):
            try:
                ids, mask = finish(tokens)
            except UnusableRow as kind:
                report.drop(str(kind), number, marked.text)
                continue
            if ids[: len(tokens[0])] != tokens[0]:
                report.shorten("text over --max_len", number, marked.text)
            report.kept += 1
            yield number, marked, (ids, mask)


def _reader(tokenizer: PreTrainedTokenizerBase, data: DataConfig, dataset: DatasetConfig) -> Reader:
    if dataset.pretrain_mode:
        return lambda row: _raw(row, data)
    if not data.apply_chat_template:
        if dataset.multiturn:
            raise ValueError("--multiturn needs --apply_chat_template")
        return lambda row: _plain(row, data, dataset)
    return lambda row: _chat(row, tokenizer, data, dataset)


def _finisher(tokenizer: PreTrainedTokenizerBase, dataset: DatasetConfig) -> Callable[[Encoded], Encoded]:
    if dataset.pretrain_mode:
        return lambda encoded: _cut_raw(encoded, dataset.max_len)
    eos = eos_id(tokenizer)
    return lambda encoded: _cut(encoded, dataset.max_len, eos)


def _texts(rows: Iterable[Row], read: Reader, report: DropReport, flag: str) -> Iterator[tuple[int, MarkedText]]:
    for number, row in enumerate(rows):
        try:
            yield number, read(row)
        except UnusableRow as kind:
            report.drop(str(kind), number, row)
        except ValueError as error:
            raise ValueError(f"{flag} row {number}: {error}") from error


def _chunks(texts: Iterator[tuple[int, MarkedText]]) -> Iterator[list[tuple[int, MarkedText]]]:
    chunk = []
    for item in texts:
        chunk.append(item)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    yield chunk


def _raw(row: Row, data: DataConfig) -> MarkedText:
    text = plain_text(cell(row, data.input_key, "--input_key"), "--input_key")
    if not text:
        raise UnusableRow("empty text")
    return MarkedText(text, ((0, len(text)),))


def _plain(row: Row, data: DataConfig, dataset: DatasetConfig) -> MarkedText:
    question = plain_text(cell(row, data.input_key, "--input_key"), "--input_key")
    prompt = fill_template(data.input_template, question)
    # Without an output column the answer is empty and the report says so.
    answer = plain_text(cell(row, dataset.output_key, "--output_key"), "--output_key") if dataset.output_key else ""
    if not question.strip():
        raise UnusableRow("empty prompt")
    if not answer.strip():
        raise UnusableRow("empty response")
    text = (prompt + answer).rstrip("\n")
    return MarkedText(text, ((len(prompt), len(text)),))


def _chat(row: Row, tokenizer: PreTrainedTokenizerBase, data: DataConfig, dataset: DatasetConfig) -> MarkedText:
    prompt, answer = _conversation(row, data, dataset)
    if not any(map(says_something, prompt)):
        raise UnusableRow("empty prompt")
    if prompt[0]["role"] == "assistant":
        raise UnusableRow("conversation that the assistant begins")
    if dataset.multiturn:
        marked = mark_turns(tokenizer, [*prompt, *answer])
    elif answer[-1]["role"] != "assistant":
        raise UnusableRow("conversation that does not end with the assistant")
    elif not any(map(says_something, answer)):
        raise UnusableRow("empty response")
    else:
        marked = mark_answer(tokenizer, prompt, answer)
    if not marked.spans:
        raise UnusableRow("empty response")
    return marked


def _conversation(row: Row, data: DataConfig, dataset: DatasetConfig) -> tuple[list[Message], list[Message]]:
    value = cell(row, data.input_key, "--input_key")
    if not value:
        raise UnusableRow("empty prompt")
    if not dataset.output_key:
        if isinstance(value, str):
            raise ValueError("the column of --input_key holds text, not messages; name the answer with --output_key")
        messages = as_messages(value)
        return messages[:-1], messages[-1:]
    answer = cell(row, dataset.output_key, "--output_key")
    if not answer:
        raise UnusableRow("empty response")
    return as_messages(value), as_messages(answer, role="assistant")


def _cut_raw(encoded: Encoded, max_len: int) -> Encoded:
    tokens = encoded[0][:max_len]
    if len(tokens) < 2:
        raise UnusableRow("text of fewer than two tokens")
    return tokens, [False] + [True] * (len(tokens) - 1)


def _cut(encoded: Encoded, max_len: int, eos: int) -> Encoded:
    tokens, mask = encoded
    if True not in mask:
        raise UnusableRow("empty response")
    if mask.index(True) >= max_len - 2:
        raise UnusableRow("prompt of --max_len - 2 tokens or more")
    tokens, mask = tokens[:max_len], mask[:max_len]
    # A cut inside another's turn leaves tokens without loss at the end.
    length = len(mask) - mask[::-1].index(True)
    tokens, mask = tokens[:length], mask[:length]
    if tokens[-1] == eos:
        return tokens, mask
    if length == max_len:
        return [*tokens[:-1], eos], mask
    return [*tokens, eos], [*mask, True]
