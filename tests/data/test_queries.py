"""Texts for a reward model: the tokens of training, however they were padded."""

from __future__ import annotations

import pytest

from openrlhf.config.groups import DataConfig, PairConfig
from openrlhf.data.paired import paired_samples
from openrlhf.data.queries import query_samples

PAD, EOS = "<|im_start|>", "</s>"
TEXT = "What is 2 + 3? The answer is 5."


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = PAD
    return tokenizer


def tokens(tokenizer, text: str, max_len: int = 99) -> list[int]:
    (sample,) = query_samples([text], tokenizer, max_len)
    assert sample.action_mask.all()
    return sample.tokens.tolist()


@pytest.mark.parametrize("max_len", [99, 16, 15])
def test_the_tokens_are_those_of_training(tokenizer, max_len: int) -> None:
    row = {"chosen": TEXT, "rejected": "I do not know."}
    pairs = PairConfig(dataset="rows", max_len=max_len)
    (((chosen, _),), _) = paired_samples([row], tokenizer, DataConfig(), pairs, drop_long_prompts=False)
    assert tokens(tokenizer, TEXT, max_len) == chosen.tokens.tolist()


@pytest.mark.parametrize(
    "text",
    [TEXT, TEXT + EOS, PAD * 3 + TEXT + EOS, TEXT + EOS + PAD * 3, EOS + TEXT + EOS + EOS, PAD + EOS + TEXT + PAD],
)
def test_padding_and_eos_around_a_text_change_nothing(tokenizer, text: str) -> None:
    assert tokens(tokenizer, text) == [*tokenizer(TEXT, add_special_tokens=False).input_ids, tokenizer.eos_token_id]


def test_special_tokens_inside_stay(tokenizer) -> None:
    ids = tokens(tokenizer, f"one{EOS}two{PAD}three")
    assert tokenizer.decode(ids) == f"one{EOS}two{PAD}three{EOS}"


def test_of_a_long_text_the_beginning_is_kept(tokenizer) -> None:
    whole = tokens(tokenizer, TEXT)
    length = len(whole)
    samples = [query_samples([TEXT], tokenizer, max_len)[0] for max_len in (length, length - 1)]
    assert [sample.truncated for sample in samples] == [False, True]
    assert samples[0].tokens.tolist() == whole
    assert samples[1].tokens.tolist() == [*whole[: length - 2], whole[-1]]


@pytest.mark.parametrize("text", ["", EOS, PAD * 4])
def test_a_text_of_nothing_is_its_end(tokenizer, text: str) -> None:
    assert tokens(tokenizer, text) == [tokenizer.eos_token_id]
