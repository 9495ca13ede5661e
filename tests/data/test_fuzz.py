"""Whatever stands in a row: prompts that can be used, or a ValueError; never another error, never an empty prompt."""

from __future__ import annotations

from contextlib import suppress
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from openrlhf.config.groups import DataConfig, DatasetConfig, PromptConfig
from openrlhf.data.prompts import load_prompts
from openrlhf.data.sft import sft_samples

FEW = settings(max_examples=150, deadline=None, database=None, derandomize=True)
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.binary(max_size=3))
MESSAGES = st.lists(
    st.dictionaries(st.sampled_from(["role", "content", "from", "value", "tool_calls"]), LEAVES | st.just("user")),
    max_size=3,
)
VALUES = st.one_of(LEAVES, MESSAGES, st.lists(LEAVES, max_size=2), st.dictionaries(st.text(max_size=3), LEAVES))
ROWS = st.lists(
    st.dictionaries(st.sampled_from(["input", "output", "label", "datasource", "other"]), VALUES), max_size=3
)


@pytest.mark.parametrize("chat", [False, True])
def test_half_a_character_costs_its_row_alone(make_tokenizer, chat: bool) -> None:
    """``"\\ud83d"`` is JSON, and no text."""
    rows = [{"input": "half \ud83d", "output": "a"}, {"input": "a", "output": "\ud83d"}, {"input": "a", "output": "b"}]
    tokenizer, data = make_tokenizer("chatml"), DataConfig(apply_chat_template=chat)
    prompts, _ = load_prompts(rows, tokenizer, data, PromptConfig(prompt_data="rows"))
    samples, report = sft_samples(rows, tokenizer, data, DatasetConfig(dataset="rows", output_key="output"))
    assert [prompt.id for prompt in prompts] == [1, 2] and [sample.group for sample in samples] == [2]
    assert report.dropped["half a character (a lone surrogate)"].count == 2


@pytest.mark.parametrize("chat", [False, True])
@FEW
@given(rows=ROWS)
@example(rows=[{"input": "\ud800", "output": "\udfff"}])
def test_any_rows(make_tokenizer, chat: bool, rows: list[dict[str, object]]) -> None:
    tokenizer = cache(make_tokenizer)("chatml")
    data = DataConfig(apply_chat_template=chat)
    with suppress(ValueError):
        prompts, report = load_prompts(rows, tokenizer, data, PromptConfig(prompt_data="rows", label_key="label"))
        assert prompts and all(prompt.tokens for prompt in prompts)
        assert len(prompts) + sum(tally.count for tally in report.dropped.values()) == len(rows)
    with suppress(ValueError):
        samples, _ = sft_samples(rows, tokenizer, data, DatasetConfig(dataset="rows", output_key="output"))
        assert samples and all(sample.action_mask.any() for sample in samples)
