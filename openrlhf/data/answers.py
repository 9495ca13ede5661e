"""Rows of prompts and answers that a reward model is to judge."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from openrlhf.config.groups import DataConfig, DatasetConfig
from openrlhf.data.report import DropReport
from openrlhf.data.rows import Row
from openrlhf.data.sft import encoded_rows
from openrlhf.types import Sample


@dataclass(frozen=True)
class Answer:
    """``input`` and ``output`` are the text that the model reads, template filled in; ``sample`` are its tokens."""

    input: str
    output: str
    sample: Sample


def load_answers(
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    dataset: DatasetConfig,
    flag: str = "--dataset",
) -> tuple[list[Answer], DropReport]:
    """One answer a usable row, in order, read as in supervised training: it ends in EOS, and what is over ``max_len``
    is cut. Raises ValueError for a row that does not fit the flags, naming it, when no row is usable, and with
    ``--strict_data`` for any row that is dropped or cut."""
    report = DropReport()
    answers = []
    for number, marked, (ids, mask) in encoded_rows(rows, tokenizer, data, dataset, report, flag):
        begin = marked.spans[0][0]
        sample = Sample(torch.tensor(ids), torch.tensor(mask), group=number)
        answers.append(Answer(marked.text[:begin], marked.text[begin:], sample))
    report.finish(flag, data.strict_data)
    return answers, report
