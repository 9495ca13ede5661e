"""Texts that end a response, as its end-of-text token does, and stay in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Decode = Callable[[list[int]], str]
SPARE = 4  # tokens: the first ones may be parts of a character, or of a text that is written otherwise at a beginning


def decoder(tokenizer: Any) -> Decode:
    """Token ids → their text, special tokens and all."""

    def decode(token_ids: list[int]) -> str:
        text: str = tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    return decode


def ends(token_ids: list[int], stop_strings: Sequence[str], decode: Decode) -> bool:
    """Whether one of the texts is there since the last token of the response ``token_ids``, when none was before."""
    text = decode(token_ids[-reach(stop_strings) :])
    return any(stop in text for stop in stop_strings)


def reach(stop_strings: Sequence[str]) -> int:
    """Tokens, each of a byte or more, that one of the texts may lie in."""
    return max(len(stop.encode()) for stop in stop_strings) + SPARE
