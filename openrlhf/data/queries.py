"""Texts as a reward model was trained to read them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from openrlhf.data.encode import eos_id, token_ids
from openrlhf.types import Sample


def query_samples(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_len: int) -> list[Sample]:
    """One sample a text, ending in exactly one EOS, whatever padding and EOS tokens stood around the text.

    As in training, of a text longer than ``max_len`` tokens the first ``max_len`` − 1 are kept, with EOS behind them;
    such a sample is ``truncated``.
    """
    eos = eos_id(tokenizer)
    around = {eos, tokenizer.pad_token_id}
    inner = [_without_ends(tokens, around) for tokens in token_ids(tokenizer, texts)]
    return [_sample(tokens, eos, max_len) for tokens in inner]


def _without_ends(tokens: list[int], ends: set[int]) -> list[int]:
    inside = [place for place, token in enumerate(tokens) if token not in ends]
    return tokens[inside[0] : inside[-1] + 1] if inside else []


def _sample(tokens: list[int], eos: int, max_len: int) -> Sample:
    kept = torch.tensor([*tokens[: max_len - 1], eos])
    return Sample(kept, torch.ones(len(kept), dtype=torch.bool), truncated=len(tokens) >= max_len)
