"""When a response has come to a text that ends it, whichever tokens write that."""

from __future__ import annotations

from pathlib import Path

import pytest

from openrlhf.models.tiny import build_tokenizer
from openrlhf.rollout.stop_strings import decoder, ends


@pytest.mark.parametrize(
    ("text", "stop"),
    [
        ("the answer is 4.\nUser: what", "\nUser:"),
        ("the the the end", "the end"),
        ("größer als 日本", "日本"),  # of three bytes each, which are tokens of their own
        ("a" * 300 + "ab", "ab"),
        ("stop", "stop"),
        ("two\n\nlines", "\n\n"),
    ],
)
def test_the_first_token_that_completes_it(text: str, stop: str, tmp_path: Path) -> None:
    tokenizer = build_tokenizer(tmp_path, ["the answer is the end"] * 4, vocab_size=280)
    tokens, decode = tokenizer(text).input_ids, decoder(tokenizer)
    seen = [ends(tokens[:count], ("never said", stop), decode) for count in range(1, len(tokens) + 1)]
    first = next(count for count in range(1, len(tokens) + 1) if stop in tokenizer.decode(tokens[:count]))
    assert seen.index(True) == first - 1
    assert not any(ends(tokens[:count], ("never said",), decode) for count in range(1, len(tokens) + 1))


def test_a_special_token_is_a_text_too(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(tmp_path)
    tokens = tokenizer("so<|im_start|>user").input_ids
    seen = [ends(tokens[:count], ("<|im_start|>",), decoder(tokenizer)) for count in range(1, len(tokens) + 1)]
    assert seen.index(True) == 2
