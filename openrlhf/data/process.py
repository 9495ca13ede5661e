"""Rows → samples for a process reward model: a label at the placeholder after each step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from openrlhf.config.groups import DataConfig, ProcessConfig
from openrlhf.data.encode import token_ids
from openrlhf.data.report import DropReport, UnusableRow
from openrlhf.data.rows import Row, cell, plain_text
from openrlhf.types import Sample


@dataclass(frozen=True)
class StepLabels:
    """How labels are read: ``tokens`` are the ids of --reward_tokens, or None for the whole vocabulary."""

    placeholder: int
    tokens: tuple[int, ...] | None
    soft: bool  # labels are shares of correct continuations, not tokens


def read_labels(
    rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, process: ProcessConfig, flag: str = "--dataset"
) -> StepLabels:
    """From the flags and the first row that has labels.

    Raises ValueError for a placeholder or reward token of more than one token, and for soft labels without exactly two
    reward tokens.
    """
    placeholder = _single(tokenizer, process.placeholder_token, "--placeholder_token")
    names = process.reward_tokens
    tokens = None if not names else tuple(_single(tokenizer, name, "--reward_tokens") for name in names)
    first = next((label for number, row in enumerate(rows) for label in _labels(row, number, process, flag)), None)
    if first is None:
        raise ValueError(
            f"{flag}: no row has a label in {process.label_key!r}; set --label_key to the column of the labels"
        )
    soft = not isinstance(first, str)
    if soft and (tokens is None or len(tokens) != 2):
        raise ValueError("labels that are numbers need two --reward_tokens, the one for a right step first")
    return StepLabels(placeholder, tokens, soft)


def process_samples(
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    process: ProcessConfig,
    labels: StepLabels,
    flag: str = "--dataset",
) -> tuple[list[Sample], DropReport]:
    """One sample a usable row. ``action_mask`` marks the placeholders; ``labels`` has at each of them the place of the
    label among the reward tokens (its token id without reward tokens), or the share of a soft label.

    The i-th label goes to the i-th placeholder; labels beyond ``max_len`` are cut with their text. A text without a
    placeholder within ``max_len`` is dropped. Raises ValueError naming the row when the numbers of labels and
    placeholders differ, or a label is not one of the reward tokens, when no row is usable, and with ``--strict_data``
    for any row that is dropped or cut.
    """
    report = DropReport()
    samples: list[Sample] = []
    for number, row in enumerate(rows):
        try:
            given = _labels(row, number, process, flag)
            sample, cut = _sample(row, given, tokenizer, data, process, labels)
        except UnusableRow as kind:
            report.drop(str(kind), number, row)
            continue
        except ValueError as error:
            raise ValueError(f"{flag} row {number}: {error}") from error
        sample.group = number
        if cut:
            report.shorten("text over --max_len", number, row)
        samples.append(sample)
    report.kept = len(samples)
    report.finish(flag, data.strict_data)
    return samples, report


def label_name(tokenizer: PreTrainedTokenizerBase, labels: StepLabels, sample: Sample, t: int) -> str:
    """The label at the placeholder ``t`` of a sample, as a person wrote it: ``=+`` or ``=0.25``."""
    assert sample.labels is not None
    value = float(sample.labels[t])
    if labels.soft:
        return f"={value:g}"
    return "=" + str(tokenizer.decode([int(value) if labels.tokens is None else labels.tokens[int(value)]]))


def _labels(row: Row, number: int, process: ProcessConfig, flag: str) -> Sequence[Any]:
    """Of each step. Raises ValueError naming the row where the column is missing or holds no list."""
    try:
        given = cell(row, process.label_key, "--label_key")
    except ValueError as error:
        raise ValueError(f"{flag} row {number}: {error}") from error
    if given is None:
        return []
    if not isinstance(given, (list, tuple)):
        raise ValueError(f"{flag} row {number}: the column of --label_key holds {given!r:.80}, not a list of labels")
    return given


def _sample(
    row: Row,
    given: Sequence[Any],
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    process: ProcessConfig,
    labels: StepLabels,
) -> tuple[Sample, bool]:
    text = plain_text(cell(row, data.input_key, "--input_key"), "--input_key")
    ids = torch.tensor(token_ids(tokenizer, [text])[0], dtype=torch.int64)
    steps = (ids == labels.placeholder).nonzero().squeeze(1)
    if len(steps) != len(given):
        raise ValueError(f"{len(given)} labels for {len(steps)} placeholders {process.placeholder_token!r}")
    kept = steps[steps < process.max_len]
    if len(kept) == 0:
        raise UnusableRow("no placeholder within --max_len")
    tokens = ids[: process.max_len]
    at = torch.zeros(len(tokens))
    at[kept] = torch.tensor([_value(label, tokenizer, labels) for label in given[: len(kept)]])
    mask = torch.zeros(len(tokens), dtype=torch.bool)
    mask[kept] = True
    return Sample(tokens, mask, labels=at), len(ids) > process.max_len


def _value(label: Any, tokenizer: PreTrainedTokenizerBase, labels: StepLabels) -> float:
    if labels.soft:
        if not isinstance(label, Real) or not 0 <= float(label) <= 1:
            raise ValueError(f"the label {label!r} is not a number from 0 to 1, as the labels before it are")
        return float(label)
    if not isinstance(label, str):
        raise ValueError(f"the label {label!r} is not a token, as the labels before it are")
    token = _single(tokenizer, label, "--label_key: the label")
    if labels.tokens is None:
        return float(token)
    if token not in labels.tokens:
        raise ValueError(f"the label {label!r} is not one of --reward_tokens")
    return float(labels.tokens.index(token))


def _single(tokenizer: PreTrainedTokenizerBase, text: str, flag: str) -> int:
    ids = token_ids(tokenizer, [text])[0]
    if len(ids) != 1:
        raise ValueError(f"{flag} {text!r} is {len(ids)} tokens for this tokenizer; it must be one")
    return ids[0]
