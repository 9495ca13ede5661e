"""Answers that a reward model judges: the texts that are written, and the tokens that are read."""

from __future__ import annotations

from typing import Any

import pytest

from openrlhf.config.groups import DataConfig, DatasetConfig
from openrlhf.data.answers import load_answers
from tests.data.conftest import MakeTokenizer


@pytest.fixture
def tokenizer(make_tokenizer: MakeTokenizer) -> Any:
    return make_tokenizer("chatml", eos="<|im_end|>")


def load(tokenizer: Any, rows: list[dict[str, Any]], max_len: int = 64, **data: Any) -> Any:
    return load_answers(rows, tokenizer, DataConfig(**data), DatasetConfig("d", output_key="output", max_len=max_len))


def test_plain_text(tokenizer: Any) -> None:
    rows = [{"input": "Q {reward} ", "output": "yes\n"}, {"input": "Q", "output": " "}, {"input": "R", "output": "no"}]
    answers, report = load(tokenizer, rows)
    assert [(a.input, a.output) for a in answers] == [("Q {reward} ", "yes"), ("R", "no")]
    assert [tokenizer.decode(a.sample.tokens) for a in answers] == [
        "Q {reward} yes" + tokenizer.eos_token, "R" + "no" + tokenizer.eos_token
    ]  # fmt: skip
    assert [a.sample.group for a in answers] == [0, 2]
    assert report.line() == "2 of 3 rows kept; dropped: empty response 1 (first row 1: {'input': 'Q', 'output': ' '})"


def test_the_template_is_part_of_the_text(tokenizer: Any) -> None:
    (answer,), _ = load(tokenizer, [{"input": "1?", "output": "2"}], input_template="User: {}\nAssistant: ")
    assert (answer.input, answer.output) == ("User: 1?\nAssistant: ", "2")


def test_chat(tokenizer: Any) -> None:
    (answer,), _ = load(tokenizer, [{"input": "1?", "output": "2"}], max_len=200, apply_chat_template=True)
    assert answer.input == "<|im_start|>user\n1?<|im_end|>\n<|im_start|>assistant\n"
    assert answer.output == "2<|im_end|>"


def test_what_is_cut_is_counted(tokenizer: Any) -> None:
    answers, report = load(tokenizer, [{"input": "Q", "output": "x" * 99}], max_len=16)
    assert len(answers[0].sample.tokens) == 16
    assert answers[0].output == "x" * 99
    assert report.shortened["text over --max_len"].count == 1


def test_nothing_to_judge(tokenizer: Any) -> None:
    with pytest.raises(
        ValueError, match="no row of --dataset can be used: 0 of 1 rows kept; dropped: empty response 1"
    ):
        load(tokenizer, [{"input": "Q", "output": ""}])
