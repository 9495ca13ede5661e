"""Whatever stands in a row: data that can be used, or a ValueError; never another error, never an empty prompt."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from openrlhf.config.groups import (
    DataConfig,
    DatasetConfig,
    PairConfig,
    ProcessConfig,
    PromptConfig,
    UnpairedConfig,
)
from openrlhf.data.answers import load_answers
from openrlhf.data.paired import paired_samples
from openrlhf.data.process import process_samples, read_labels
from openrlhf.data.prompts import load_prompts
from openrlhf.data.sft import sft_samples
from openrlhf.data.unpaired import unpaired_samples
from tests.data.conftest import MakeTokenizer

FEW = settings(max_examples=150, deadline=None, database=None, derandomize=True)
FEWER = settings(FEW, max_examples=60)
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


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer: MakeTokenizer) -> PreTrainedTokenizerBase:
    return make_tokenizer("chatml")


@pytest.mark.parametrize("chat", [False, True])
@FEW
@given(rows=ROWS)
@example(rows=[{"input": "\ud800", "output": "\udfff"}])
def test_any_rows(tokenizer: PreTrainedTokenizerBase, chat: bool, rows: list[dict[str, object]]) -> None:
    data = DataConfig(apply_chat_template=chat)
    with suppress(ValueError):
        prompts, report = load_prompts(rows, tokenizer, data, PromptConfig(prompt_data="rows", label_key="label"))
        assert prompts and all(prompt.tokens for prompt in prompts)
        assert len(prompts) + sum(tally.count for tally in report.dropped.values()) == len(rows)
    with suppress(ValueError):
        samples, _ = sft_samples(rows, tokenizer, data, DatasetConfig(dataset="rows", output_key="output"))
        assert samples and all(sample.action_mask.any() for sample in samples)


PAIRS = st.lists(
    st.dictionaries(st.sampled_from(["prompt", "chosen", "rejected", "margin"]), VALUES | st.just("a")), max_size=3
)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("key", [None, "prompt"])
@FEWER
@given(rows=PAIRS)
def test_any_pairs(
    tokenizer: PreTrainedTokenizerBase, chat: bool, key: str | None, rows: list[dict[str, object]]
) -> None:
    pairs = PairConfig(dataset="rows", prompt_key=key, max_len=32)
    with suppress(ValueError):
        kept, report = paired_samples(rows, tokenizer, DataConfig(apply_chat_template=chat), pairs, True)
        assert kept and all(sample.action_mask.any() for pair in kept for sample in pair)
        assert len(kept) + sum(tally.count for tally in report.dropped.values()) == len(rows)


LABELS = st.sampled_from([0, 1, "1", "no", "+", ["+"], ["+", "-"], [0.5], [2.0], [None]])
LABELLED = st.lists(
    st.dictionaries(
        st.sampled_from(["input", "output", "label"]), VALUES | LABELS | st.sampled_from(["a#", "#", "a#b#"])
    ),
    max_size=3,
)


@pytest.mark.parametrize("chat", [False, True])
@FEWER
@given(rows=LABELLED)
def test_any_labelled_answers(tokenizer: PreTrainedTokenizerBase, chat: bool, rows: list[dict[str, object]]) -> None:
    data = DataConfig(apply_chat_template=chat)
    with suppress(ValueError):
        kept, _ = unpaired_samples(rows, tokenizer, data, UnpairedConfig(dataset="rows", output_key="output"))
        assert len(kept) > 1 and {sample.reward for sample, _ in kept} <= {0.0, 1.0}
    with suppress(ValueError):
        answers, _ = load_answers(rows, tokenizer, data, DatasetConfig(dataset="rows", output_key="output"))
        assert answers and all(answer.sample.action_mask.any() for answer in answers)


@pytest.mark.parametrize("tokens", [None, ("+", "-"), ("+",)])
@FEWER
@given(rows=LABELLED)
@example(rows=[{"input": "a#", "label": None}])
@example(rows=[{"input": "a#", "label": 1}])
@example(rows=[{"input": "a#b#", "label": "+-"}])
def test_any_step_labels(
    tokenizer: PreTrainedTokenizerBase, tokens: tuple[str, ...] | None, rows: list[dict[str, object]]
) -> None:
    process = ProcessConfig(dataset="rows", placeholder_token="#", reward_tokens=tokens)
    with suppress(ValueError):
        labels = read_labels(rows, tokenizer, process)
        kept, _ = process_samples(rows, tokenizer, DataConfig(), process, labels)
        assert kept and all(sample.action_mask.any() for sample in kept)
