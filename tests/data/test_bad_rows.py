"""Rows that are no data: left out with their number and a count, or refused in a sentence; the others are used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from openrlhf.config.groups import DataConfig, DatasetConfig, PromptConfig
from openrlhf.data.load import load_rows
from openrlhf.data.prompts import load_prompts
from openrlhf.data.sft import sft_samples

GOOD = json.dumps({"input": "hello", "output": "world"})


def read(path: Path, line: str, make_tokenizer: Any) -> tuple[list[int], str, list[int], str]:
    """The good row, the line and the good row again, as prompts and as examples: who is left, and what is said."""
    path.write_text("".join(each + "\n" for each in (GOOD, line, GOOD)), encoding="utf-8")
    rows, tokenizer = load_rows(str(path), "train", None, 10**9, 0, "--prompt_data", False), make_tokenizer()
    own = DatasetConfig(dataset="rows", output_key="output", max_len=16)
    prompts, said = load_prompts(rows, tokenizer, DataConfig(), PromptConfig(prompt_data="rows", prompt_max_len=16))
    assert all(0 < len(prompt.tokens) <= 16 for prompt in prompts)
    samples, told = sft_samples(rows, tokenizer, DataConfig(), own)
    return [prompt.id for prompt in prompts], said.line(), [sample.group for sample in samples], told.line()


@pytest.mark.parametrize("line", ['{"output": "b"}', "null", '{"input": "", "output": "b"}', '{"input": NaN}'])
def test_a_row_without_text_is_left_out(line: str, make_tokenizer: Any, tmp_path: Path) -> None:
    prompts, said, samples, told = read(tmp_path / "rows.jsonl", line, make_tokenizer)
    assert prompts == samples == [0, 2]
    assert said.startswith("2 of 3 rows kept; dropped: empty prompt 1 (first row 1: ")
    assert told.startswith("2 of 3 rows kept; dropped: empty ")


@pytest.mark.parametrize("line", ["[1, 2]", '"text"', "3"])
def test_a_line_that_is_no_object_is_refused_with_its_file(line: str, make_tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--prompt_data .*/rows.jsonl: this .jsonl file is empty or broken"):
        read(tmp_path / "rows.jsonl", line, make_tokenizer)


@pytest.mark.parametrize("value", [["a", "b"], {"a": 1}])
def test_a_value_that_is_no_text_is_refused_with_its_row(value: Any, make_tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--prompt_data row 1: the column of --input_key holds messages, not text"):
        read(tmp_path / "rows.jsonl", json.dumps({"input": value, "output": "b"}), make_tokenizer)


def test_special_tokens_are_text_like_any(make_tokenizer: Any, tmp_path: Path) -> None:
    line = json.dumps({"input": "</s><s>", "output": "</s>"})
    prompts, said, samples, _ = read(tmp_path / "rows.jsonl", line, make_tokenizer)
    assert prompts == samples == [0, 1, 2] and said == "3 of 3 rows kept"


def test_a_million_characters_are_cut_and_counted(make_tokenizer: Any, tmp_path: Path) -> None:
    line = json.dumps({"input": "x y" * 333_334, "output": "b"})
    prompts, said, samples, told = read(tmp_path / "rows.jsonl", line, make_tokenizer)
    assert prompts == [0, 1, 2] and samples == [0, 2]
    assert "shortened: prompt over --prompt_max_len, its end is kept, 1 (first row 1: 'x yx y" in said
    assert "dropped: prompt of --max_len - 2 tokens or more 1 (first row 1: 'x yx y" in told
