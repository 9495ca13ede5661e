"""A conversation as text and tokens, by template and by chat template."""

from __future__ import annotations

import pytest

from openrlhf.config.groups import DataConfig
from openrlhf.data.conversation import Exchange, Style, conversation_text, conversation_tokens

SAID = [Exchange("one", "1"), Exchange("two", "2")]
PLAIN = DataConfig(input_template="User: {}\nAssistant: ")
CHAT = DataConfig(apply_chat_template=True)


def test_a_template_goes_around_every_question(make_tokenizer) -> None:
    text = conversation_text(SAID, "a {} b", make_tokenizer(), Style(PLAIN, "Begin.\n", "<rm_score>: 5.00 "))
    assert text == (
        "Begin.\nUser: one\nAssistant: 1\nUser: two\nAssistant: 2\nUser: a {} b\nAssistant: <rm_score>: 5.00 "
    )


def test_without_a_template_the_texts_stand_alone(make_tokenizer) -> None:
    assert conversation_text(SAID[:1], "three", make_tokenizer(), Style(DataConfig())) == "one1\nthree"


def test_a_chat_template_gets_messages(make_tokenizer) -> None:
    text = conversation_text(SAID[:1], "three", make_tokenizer("chatml"), Style(CHAT, "Be kind.", "!"))
    turns = [("system", "Be kind."), ("user", "one"), ("assistant", "1"), ("user", "three")]
    rendered = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    assert text == rendered + "<|im_start|>assistant\n!"
    with pytest.raises(ValueError, match="Only user and assistant roles are supported"):
        conversation_text([], "three", make_tokenizer("inst"), Style(CHAT, "Be kind."))


def test_the_oldest_is_forgotten_first(make_tokenizer) -> None:
    tokenizer, style = make_tokenizer(), Style(PLAIN)
    lengths = [len(tokenizer(conversation_text(SAID[n:], "three", tokenizer, style)).input_ids) for n in (0, 1, 2)]
    for longest, forgotten in [(99, 0), (lengths[0], 0), (lengths[0] - 1, 1), (lengths[1] - 1, 2), (lengths[2], 2)]:
        tokens, left_out = conversation_tokens(SAID, "three", tokenizer, style, longest)
        assert (left_out, len(tokens)) == (forgotten, lengths[forgotten])
        assert tokenizer.decode(tokens) == conversation_text(SAID[forgotten:], "three", tokenizer, style)
    with pytest.raises(ValueError, match=f"has {lengths[2]} tokens; --max_len leaves room for {lengths[2] - 1}"):
        conversation_tokens(SAID, "three", tokenizer, style, lengths[2] - 1)
