"""What is said of a prompt template, by a tokenizer that puts the space in front of a word into its token."""

from __future__ import annotations

from pathlib import Path

import pytest

from openrlhf.check.rows import look_at_template
from openrlhf.config.groups import DataConfig
from openrlhf.models.tiny import build_tokenizer


@pytest.mark.parametrize(
    ("template", "ending"),
    [("Q: {}\nA: ", "' '"), ("Q: {}\nA:", None), ("Q: {}\nA:\n", None), (None, None), ("{}=", None), ("a {} T", "'T'")],
)
def test_a_template_that_shares_a_token_with_the_answer(
    template: str | None, ending: str | None, tmp_path: Path
) -> None:
    tokenizer = build_tokenizer(tmp_path, ["Q: why?\nA: The TThe 12"] * 50, vocab_size=270)
    found = list(look_at_template(DataConfig(input_template=template), tokenizer))
    assert len(found) == (ending is not None)
    for severity, sentence in found:
        assert severity == "warning"
        assert sentence.startswith(f"--input_template ends in {ending}, which shares a token with the first word")
    assert not list(look_at_template(DataConfig(input_template=template, apply_chat_template=True), tokenizer))
