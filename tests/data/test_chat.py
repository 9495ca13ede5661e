from __future__ import annotations

import pytest

from openrlhf.data.chat import as_messages, mark_answer, mark_turns, render

USER = {"role": "user", "content": "hello"}
REPLY = {"role": "assistant", "content": "hello world"}
MORE = {"role": "user", "content": "how are you?"}
FINE = {"role": "assistant", "content": "fine."}


def spoken(marked):
    return [marked.text[start:end] for start, end in marked.spans]


def test_the_chat_example_of_the_readme_prints_the_string_it_shows(make_tokenizer):
    messages = [
        {"role": "user", "content": "Hello, how are you?"},
        {"role": "assistant", "content": "I'm doing great. How can I help you today?"},
        {"role": "user", "content": "I'd like to show off how chat templating works!"},
    ]
    assert render(make_tokenizer("inst"), messages) == (
        "<s>[INST] Hello, how are you? [/INST]I'm doing great. How can I help you today?</s> "
        "[INST] I'd like to show off how chat templating works! [/INST]"
    )


def test_text_is_one_message():
    assert as_messages("hello") == [USER]
    assert as_messages("hello world", role="assistant") == [REPLY]


def test_sharegpt_names_and_a_single_message_are_understood():
    rows = [{"from": "system", "value": "be kind"}, {"from": "human", "value": "hello"}, {"from": "gpt", "value": "x"}]
    assert as_messages(rows) == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "x"},
    ]
    assert as_messages({"from": "gpt", "value": "fine."}) == [FINE]


def test_keys_that_columnar_files_fill_with_none_are_left_out():
    assert as_messages([{**USER, "tool_calls": None, "from": None, "value": None}]) == [USER]


@pytest.mark.parametrize("value", [3, [1, 2], ["hello"], [{"text": "hello"}]])
def test_what_is_no_conversation_is_refused(value):
    with pytest.raises(ValueError, match=r"list of messages|neither 'role' nor 'from'"):
        as_messages(value)


def test_without_a_template_the_flag_is_named(make_tokenizer):
    with pytest.raises(ValueError, match="--tokenizer_chat_template"):
        render(make_tokenizer(), [USER])


def test_a_refusal_by_the_template_becomes_one_sentence(make_tokenizer):
    with pytest.raises(ValueError, match=r"refuses this conversation \(Only user and assistant"):
        render(make_tokenizer("inst"), [{"role": "system", "content": "x"}])


@pytest.mark.parametrize(
    "template, closing",
    [("chatml", "<|im_end|>"), ("inst", "</s>"), ("llama3", "<|eot_id|>")],
)
def test_every_assistant_turn_is_marked_with_its_closing_token(make_tokenizer, template, closing):
    marked = mark_turns(make_tokenizer(template), [USER, REPLY, MORE, FINE])
    assert spoken(marked) == ["hello world" + closing, "fine." + closing]
    assert marked.text.endswith("fine." + closing)


def test_text_ends_with_the_last_assistant_turn(make_tokenizer):
    marked = mark_turns(make_tokenizer("chatml"), [USER, REPLY, MORE])
    assert marked.text == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nhello world<|im_end|>"


def test_an_empty_turn_carries_no_loss(make_tokenizer):
    empty = {"role": "assistant", "content": " "}
    assert spoken(mark_turns(make_tokenizer("chatml"), [USER, empty, MORE, FINE])) == ["fine.<|im_end|>"]


def test_only_the_answer_is_marked(make_tokenizer):
    marked = mark_answer(make_tokenizer("llama3"), [USER, REPLY, MORE], [FINE])
    assert spoken(marked) == ["fine.<|eot_id|>"]


def test_a_template_that_strips_earlier_reasoning_is_refused_for_all_turns(make_tokenizer):
    thinking = {"role": "assistant", "content": "<think>so</think>hello world"}
    with pytest.raises(ValueError, match="does not keep its prefix"):
        mark_turns(make_tokenizer("strips_reasoning"), [USER, thinking, MORE, FINE])


def test_a_template_that_strips_earlier_reasoning_serves_for_the_last_turn(make_tokenizer):
    thinking = {"role": "assistant", "content": "<think>so</think>hello world"}
    marked = mark_answer(make_tokenizer("strips_reasoning"), [USER, thinking, MORE], [FINE])
    assert spoken(marked) == ["fine.<|im_end|>"]
    assert "<think>" not in marked.text


def test_a_generation_prompt_that_does_not_begin_the_turn_is_refused(make_tokenizer):
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ '<|im_start|>assistant\\n' }}", "{{ 'Answer: ' }}")
    with pytest.raises(ValueError, match="does not keep its prefix"):
        mark_answer(tokenizer, [USER], [REPLY])
    with pytest.raises(ValueError, match="does not keep its prefix"):
        mark_turns(tokenizer, [USER, REPLY])
