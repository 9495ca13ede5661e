from __future__ import annotations

import pytest

from openrlhf.config.groups import DataConfig, PromptConfig
from openrlhf.data.prompts import load_prompts


def read(tokenizer, rows, label_key=None, prompt_max_len=64, **data):
    prompts = PromptConfig(prompt_data="rows", label_key=label_key, prompt_max_len=prompt_max_len)
    return load_prompts(rows, tokenizer, DataConfig(**data), prompts)


def build(tokenizer, rows, **settings):
    return read(tokenizer, rows, **settings)[0]


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


def test_of_a_long_prompt_the_end_is_kept_and_reported(make_tokenizer):
    tokenizer = make_tokenizer("chatml")
    rows = [{"input": "q"}, {"input": "q" * 30}]
    (short, long), report = read(tokenizer, rows, apply_chat_template=True, prompt_max_len=20)
    assert len(long.tokens) == 20
    assert tokenizer.decode(long.tokens).endswith("q<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(short.tokens) == short.text
    assert report.line().startswith(
        "2 of 2 rows kept; shortened: prompt over --prompt_max_len, its end is kept, 1 (first row 1: '<|im_start|>user"
    )


def test_empty_prompts_are_dropped_and_ids_stay_row_numbers(make_tokenizer):
    rows = [{"input": ""}, {"input": "q"}, {"input": None}, {"input": "qq"}]
    prompts, report = read(make_tokenizer(), rows)
    assert [prompt.id for prompt in prompts] == [1, 3]
    assert report.line() == "2 of 4 rows kept; dropped: empty prompt 2 (first row 0: {'input': ''})"


def test_empty_conversations_are_dropped(make_tokenizer):
    rows = [{"input": []}, {"input": [{"role": "user", "content": ""}]}, {"input": "q"}]
    assert [prompt.id for prompt in build(make_tokenizer("chatml"), rows, apply_chat_template=True)] == [2]


def test_a_prompt_of_exactly_the_limit_is_whole(make_tokenizer):
    (prompt,), report = read(make_tokenizer(), [{"input": "qqqq"}], prompt_max_len=4, strict_data=True)
    assert len(prompt.tokens) == 4
    assert report.line() == "1 of 1 rows kept"


def test_strict_data_refuses_empty_and_cut_prompts_by_row(make_tokenizer):
    rows = [{"input": "q"}, {"input": ""}, {"input": "q" * 30}, {"input": None}]
    with pytest.raises(ValueError, match="^--strict_data: ") as error:
        build(make_tokenizer(), rows, prompt_max_len=20, strict_data=True)
    assert str(error.value).startswith(
        "--strict_data: not every row of --prompt_data can be used whole: empty prompt in 2 (rows 1, 3; the first is "
        "{'input': ''}), prompt over --prompt_max_len, its end is kept, in 1 (row 2; the first is "
    )


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
