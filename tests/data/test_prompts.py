from __future__ import annotations

import logging

import pytest

from openrlhf.config.groups import DataConfig, PromptConfig
from openrlhf.data.prompts import load_prompts


def build(tokenizer, rows, label_key=None, prompt_max_len=64, **data):
    prompts = PromptConfig(prompt_data="rows", label_key=label_key, prompt_max_len=prompt_max_len)
    return load_prompts(rows, tokenizer, DataConfig(**data), prompts)


def test_a_prompt_holds_text_tokens_label_and_source(make_tokenizer):
    tokenizer = make_tokenizer()
    rows = [{"input": "hello", "answer": 4, "datasource": "sums"}, {"input": "qq", "answer": None, "datasource": None}]
    first, second = build(tokenizer, rows, label_key="answer", input_template="Question: {}\nAnswer:")
    assert first.text == "Question: hello\nAnswer:"
    assert first.tokens == tokenizer.encode("Question: hello\nAnswer:", add_special_tokens=False)
    assert (first.id, first.label, first.source) == (0, "4", "sums")
    assert (second.id, second.label, second.source) == (1, "", "default")


def test_without_label_key_the_label_is_empty(make_tokenizer):
    assert build(make_tokenizer(), [{"input": "q", "label": "x"}])[0].label == ""


@pytest.mark.parametrize(
    "value", ["hello", [{"role": "user", "content": "hello"}], [{"from": "human", "value": "hello"}]]
)
def test_chat_prompts_end_in_the_generation_prompt(make_tokenizer, value):
    prompt = build(make_tokenizer("chatml"), [{"input": value}], apply_chat_template=True)[0]
    assert prompt.text == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


def test_of_a_long_prompt_the_end_is_kept_and_reported(make_tokenizer, caplog):
    tokenizer = make_tokenizer("chatml")
    with caplog.at_level(logging.WARNING):
        short, long = build(
            tokenizer, [{"input": "q"}, {"input": "q" * 30}], apply_chat_template=True, prompt_max_len=20
        )
    assert len(long.tokens) == 20
    assert tokenizer.decode(long.tokens).endswith("q<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(short.tokens) == short.text
    assert "2 of 2 rows kept; shortened: prompt over --prompt_max_len, its end is kept, 1 (first row 1)" in caplog.text


def test_empty_prompts_are_dropped_and_ids_stay_row_numbers(make_tokenizer, caplog):
    rows = [{"input": ""}, {"input": "q"}, {"input": None}, {"input": "qq"}]
    with caplog.at_level(logging.WARNING):
        assert [prompt.id for prompt in build(make_tokenizer(), rows)] == [1, 3]
    assert "2 of 4 rows kept; dropped: empty prompt 2 (first row 0)" in caplog.text


def test_empty_conversations_are_dropped(make_tokenizer):
    rows = [{"input": []}, {"input": [{"role": "user", "content": ""}]}, {"input": "q"}]
    assert [prompt.id for prompt in build(make_tokenizer("chatml"), rows, apply_chat_template=True)] == [2]


def test_nothing_is_logged_when_all_rows_are_used_whole(make_tokenizer, caplog):
    assert len(build(make_tokenizer(), [{"input": "qqqq"}], prompt_max_len=4)[0].tokens) == 4
    assert not caplog.records


def test_a_missing_column_is_named_with_row_and_flag(make_tokenizer):
    with pytest.raises(
        ValueError, match=r"--prompt_data row 0: there is no column 'answer'; set --label_key to one of: in"
    ):
        build(make_tokenizer(), [{"input": "q"}], label_key="answer")
    with pytest.raises(
        ValueError, match=r"--prompt_data row 1: there is no column 'input'; set --input_key to one of: te"
    ):
        build(make_tokenizer(), [{"input": "q"}, {"text": "q"}])


def test_no_usable_prompt_is_an_error(make_tokenizer):
    with pytest.raises(
        ValueError, match="no row of --prompt_data can be used: 0 of 1 rows kept; dropped: empty prompt 1"
    ):
        build(make_tokenizer(), [{"input": ""}])
