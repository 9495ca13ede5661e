"""Marked text → token ids and the mask of the tokens that carry loss.

A text is tokenized once, as a whole, and no special token is added, so the ids are the ones a model meets in real
text. A token carries loss when any of its characters lies in a marked span: where a merge reaches across the border
between prompt and answer, the token belongs to the answer, or the answer would lose its first word.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any

from transformers import PreTrainedTokenizerBase

from openrlhf.data.chat import MarkedText

Encoded = tuple[list[int], list[bool]]


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[MarkedText]) -> list[Encoded]:
    """(token ids, mask) of each text, both of the text's length in tokens."""
    if not texts:
        return []
    strings = [marked.text for marked in texts]
    if not tokenizer.is_fast:
        return [_encode_by_prefix(tokenizer, marked) for marked in texts]
    # verbose: the library warns of texts longer than the model; --max_len is checked by the caller.
    encoded = tokenizer(strings, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [
        (ids, _overlaps(offsets, marked.spans))
        for ids, offsets, marked in zip(encoded["input_ids"], encoded["offset_mapping"], texts, strict=True)
    ]


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text, without added special tokens."""
    if not texts:
        return []
    encoded: dict[str, Any] = tokenizer(list(texts), add_special_tokens=False, verbose=False)
    return encoded["input_ids"]


def _overlaps(offsets: Iterable[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    # Both lists are in order, so one pass suffices. Some tokenizers leave white space out of the offsets: a token
    # begins where the one before ended, or earlier when they share a character.
    mask, current, begin = [], 0, 0
    for start, end in offsets:
        begin = min(start, begin)
        while current < len(spans) and spans[current][1] <= begin:
            current += 1
        mask.append(current < len(spans) and spans[current][0] < end)
        begin = end
    return mask


def _encode_by_prefix(tokenizer: PreTrainedTokenizerBase, marked: MarkedText) -> Encoded:
    # Without offsets: tokenize the text up to each border. Where these tokens leave the ones of the whole text, a token
    # reaches across the border.
    ids = token_ids(tokenizer, [marked.text])[0]
    mask = [False] * len(ids)
    for start, end in marked.spans:
        first, _ = _shared(tokenizer, marked.text[:start], ids)
        last, whole = _shared(tokenizer, marked.text[:end], ids)
        last = last if whole else min(last + 1, len(ids))
        mask[first:last] = [True] * (last - first)
    return ids, mask


def _shared(tokenizer: PreTrainedTokenizerBase, prefix: str, ids: list[int]) -> tuple[int, bool]:
    """How many tokens of ``prefix`` begin ``ids``, and whether those are all of them."""
    own = token_ids(tokenizer, [prefix])[0]
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(own, ids, strict=False)))
    return shared, shared == len(own)


def eos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that every answer ends in. Raises ValueError when the tokenizer has none."""
    eos = tokenizer.eos_token_id
    if not isinstance(eos, int):
        raise ValueError("the tokenizer has no EOS token, which every answer must end in; set eos_token in its files")
    return eos
