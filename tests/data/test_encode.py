from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import ByT5Tokenizer

from openrlhf.data.chat import MarkedText
from openrlhf.data.encode import encode, token_ids

PIECES = st.lists(st.text(alphabet="helo wrd?:\n é😀", min_size=1, max_size=6), min_size=2, max_size=6)


def marked_tokens(tokenizer, marked):
    ids, mask = encode(tokenizer, [marked])[0]
    assert len(ids) == len(mask)
    return tokenizer.convert_ids_to_tokens([i for i, m in zip(ids, mask, strict=True) if m])


def test_ids_come_from_the_whole_text(make_tokenizer):
    tokenizer = make_tokenizer()
    text = "Question: hello\nAnswer: hello world"
    ids, _ = encode(tokenizer, [MarkedText(text, ((24, 35),))])[0]
    assert ids == tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("trim", [False, True])
def test_a_token_across_the_border_belongs_to_the_answer(make_tokenizer, trim):
    # "Answer: " ends in a space that merges with the answer's first word: the token "Ġhello" is the answer's.
    text = "Answer: hello world"
    assert marked_tokens(make_tokenizer(trim=trim), MarkedText(text, ((8, 19),))) == ["Ġhello", "Ġworld"]


@pytest.mark.parametrize("trim", [False, True])
def test_white_space_at_the_edges_of_the_answer_is_the_answers(make_tokenizer, trim):
    tokens = marked_tokens(make_tokenizer(trim=trim), MarkedText("q  h  q", ((1, 6),)))
    assert "".join(tokens) == "ĠĠhĠĠ"


def test_a_token_across_the_end_of_the_answer_is_the_answers(make_tokenizer):
    assert marked_tokens(make_tokenizer(), MarkedText("q hello world", ((1, 4),))) == ["Ġhello"]


def test_every_byte_of_a_character_is_marked(make_tokenizer):
    assert len(marked_tokens(make_tokenizer(), MarkedText("q😀q", ((1, 2),)))) == len("😀".encode())


def test_no_special_token_is_added(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    q = tokenizer.convert_tokens_to_ids("q")
    assert tokenizer("qq")["input_ids"] == [0, q, q, 1]
    assert token_ids(tokenizer, ["qq"]) == [[q, q]]
    assert encode(tokenizer, [MarkedText("qq", ((1, 2),))]) == [([q, q], [False, True])]


@given(pieces=PIECES)
@settings(max_examples=100, deadline=None)
@pytest.mark.parametrize("trim", [False, True])
def test_the_mask_covers_the_spans_and_touches_no_other_token(make_tokenizer, pieces, trim):
    """The mask by characters: a token carries loss iff one of its bytes is a byte of a marked piece."""
    tokenizer = make_tokenizer(trim=trim)
    text, spans, owners = "", [], []
    for i, piece in enumerate(pieces):
        if i % 2:
            spans.append((len(text), len(text) + len(piece)))
        owners += [bool(i % 2)] * len(piece.encode())
        text += piece
    ids, mask = encode(tokenizer, [MarkedText(text, tuple(spans))])[0]
    expected, position = [], 0
    for token in tokenizer.convert_ids_to_tokens(ids):
        width = len(token)  # one character of a byte-level token is one byte
        expected.append(any(owners[position : position + width]))
        position += width
    assert position == len(owners)
    assert mask == expected


def test_without_offsets_the_mask_comes_from_prefixes():
    # One token a byte, so the mask is the spans themselves.
    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    ids, mask = encode(tokenizer, [MarkedText("hé wo", ((1, 3), (4, 5)))])[0]
    assert bytes(i - 3 for i in ids) == "hé wo".encode()
    assert mask == [False, True, True, True, False, True]


def test_without_offsets_a_token_across_the_border_belongs_to_the_answer(make_tokenizer, monkeypatch):
    tokenizer = make_tokenizer()
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    assert marked_tokens(tokenizer, MarkedText("Answer: hello world", ((8, 19),))) == ["Ġhello", "Ġworld"]
    assert marked_tokens(tokenizer, MarkedText("Answer: hello world", ((7, 10),))) == ["Ġhello"]


def test_no_texts_give_no_tokens(make_tokenizer):
    assert encode(make_tokenizer(), []) == []
    assert token_ids(make_tokenizer(), []) == []
