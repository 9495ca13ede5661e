"""Rows → labelled answers and, for the KL baseline of KTO, each prompt with the answer of another row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from openrlhf.config.groups import DataConfig, DatasetConfig, UnpairedConfig
from openrlhf.data.encode import eos_id
from openrlhf.data.preview import Title
from openrlhf.data.report import DropReport
from openrlhf.data.rows import Row, cell
from openrlhf.data.sft import sft_samples
from openrlhf.types import Sample

LABELS: dict[Any, float] = {1: 1.0, 0: 0.0, "1": 1.0, "0": 0.0, "true": 1.0, "false": 0.0}  # True == 1 for a dict

TITLES: tuple[Title, Title] = (
    lambda sample: "desirable" if sample.reward else "undesirable",
    lambda sample: "for the KL baseline: the answer of another row",
)


def unpaired_samples(
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    unpaired: UnpairedConfig,
    flag: str = "--dataset",
) -> tuple[list[tuple[Sample, Sample]], DropReport]:
    """(labelled, mismatched) for each usable row, in order; ``group`` of both is the row number, counted from 0.

    Prompts and answers are read, cut and dropped as for supervised fine-tuning. ``reward`` of the labelled sample is 1
    for a desirable answer and 0 for an undesirable one; a label is true or false, as a boolean, number or word.

    The mismatched sample has the tokens of the prompt and those of the answer of the next row with another prompt,
    around the end of the data. So it is the same in every epoch and belongs to its example, however the rows are
    shuffled and shared among ranks. Its ``reward`` is 0 and means nothing.

    ``flag`` is the flag the rows came from, for messages. Raises ValueError for a row that does not fit the flags,
    naming it, when fewer than two rows are usable, and with ``--strict_data`` for any row that is dropped or cut.
    """
    answers = DatasetConfig(dataset=unpaired.dataset, max_len=unpaired.max_len, output_key=unpaired.output_key)
    labels: list[float] = []
    samples, report = sft_samples(
        _noting_labels(rows, labels, unpaired.label_key, flag), tokenizer, data, answers, flag
    )
    if len(samples) < 2:
        raise ValueError(
            f"KTO puts the answer of another row to each prompt, but {flag} has one usable row: {report.line()}"
        )
    eos = eos_id(tokenizer)
    labelled = [replace(sample, reward=labels[sample.group]) for sample in samples]
    others = partners([tuple(sample.tokens[: _answer_start(sample)].tolist()) for sample in samples])
    return [
        (sample, _mismatched(sample, samples[other], unpaired.max_len, eos))
        for sample, other in zip(labelled, others, strict=True)
    ], report


def partners(prompts: Sequence[object]) -> list[int]:
    """For each row the next one, around the end, with another prompt; where all prompts are the same, the next one."""
    count = len(prompts)
    following = [(i + 1) % count for i in range(count)]
    if len(set(prompts)) == 1:
        return following
    # Backwards, so that a row learns from the one after it; twice, for the run of equal prompts around the end.
    for i in 2 * list(reversed(range(count))):
        if prompts[following[i]] == prompts[i]:
            following[i] = following[following[i]]
    return following


def _noting_labels(rows: Iterable[Row], labels: list[float], key: str, flag: str) -> Iterator[Row]:
    """The rows, each one's label added to ``labels``: one pass over data that may be large."""
    for number, row in enumerate(rows):
        labels.append(_label(row, number, key, flag))
        yield row


def _label(row: Row, number: int, key: str, flag: str) -> float:
    try:
        value = cell(row, key, "--label_key")
    except ValueError as error:
        raise ValueError(f"{flag} row {number}: {error}") from error
    name = value.strip().lower() if isinstance(value, str) else value
    if not isinstance(name, (str, int, float)) or name not in LABELS:
        raise ValueError(
            f"{flag} row {number}: the column {key!r} of --label_key holds {value!r:.80}; "
            "a label is true or 1 for a desirable answer, false or 0 for an undesirable one"
        )
    return LABELS[name]


def _answer_start(sample: Sample) -> int:
    return int(sample.action_mask.int().argmax())


def _mismatched(sample: Sample, other: Sample, max_len: int, eos: int) -> Sample:
    end, start = _answer_start(sample), _answer_start(other)
    tokens = torch.cat([sample.tokens[:end], other.tokens[start:]])
    mask = torch.cat([sample.action_mask[:end], other.action_mask[start:]])
    if len(tokens) > max_len:
        tokens, mask = tokens[:max_len], mask[:max_len]
        tokens[-1], mask[-1] = eos, True
    return Sample(tokens, mask, group=sample.group, reward=0.0)
