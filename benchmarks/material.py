"""What every program of a comparison shares: one model folder, one tokenizer, one token stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from openrlhf.config.groups import ModelConfig
from openrlhf.models.load import load_score_model, load_tokenizer, save_model
from openrlhf.models.tiny import build_model

VOCABULARY = 2048
BATCH = 8
LEARNING_RATE = 1e-4
BETAS = (0.9, 0.95)
MAX_NORM = 1.0

SIZES: dict[str, Any] = {"hidden": 128, "layers": 4, "heads": 4, "kv_heads": 2, "head_dim": 32, "intermediate": 384}

Rows = list[list[int]]


def write_model(folder: Path, vocabulary: int = VOCABULARY, **sizes: int) -> None:
    """A Qwen3 of 1.05 million parameters, or of ``sizes``, and a tokenizer of one token a word: ``w0 w1 …``.

    The end token is number ``VOCABULARY``, outside the model's own vocabulary unless a larger one is asked for: then
    it is never sampled and every response has full length.
    """
    build_model(folder, vocabulary, eos_token_id=VOCABULARY, **{**SIZES, **sizes})
    words = {f"w{i}": i for i in range(VOCABULARY)} | {"<end>": VOCABULARY}
    core = Tokenizer(models.WordLevel(words, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token="w0", eos_token="<end>").save_pretrained(folder)


def write_reward_model(model: Path, folder: Path) -> None:
    """The model of a folder with a drawn score head, so that every program starts from the same one."""
    settings = ModelConfig(pretrain=str(model))
    torch.manual_seed(0)
    score_model = load_score_model(str(model), settings, "score", new_head=True)
    save_model(score_model, folder, load_tokenizer(str(model), settings))


def uniform_lengths(count: int) -> list[int]:
    return [256] * count


def answer_lengths(count: int) -> list[int]:
    return [128] * count


def short_lengths(count: int) -> list[int]:
    """Lognormal, median 180, σ 0.4: our guess at grade-school problems with worked answers."""
    return _lognormal(count, 180, 0.4)


def long_lengths(count: int) -> list[int]:
    """Lognormal, median 128, σ 1: the spread of long chains of thought, scaled down."""
    return _lognormal(count, 128, 1.0)


LENGTHS = {"uniform": uniform_lengths, "answers": answer_lengths, "short": short_lengths, "long": long_lengths}


def token_rows(lengths: str, count: int) -> Rows:
    """``count`` rows of random tokens, the same at every call. Every token but the first carries loss."""
    generator = torch.Generator().manual_seed(0)
    sizes = LENGTHS[lengths](count)
    return [torch.randint(1, VOCABULARY, (size,), generator=generator).tolist() for size in sizes]


def fill(rows: Rows) -> float:
    """Share of real tokens in padded batches."""
    batches = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    return sum(map(len, rows)) / sum(len(batch) * max(map(len, batch)) for batch in batches)


def _lognormal(count: int, median: float, sigma: float) -> list[int]:
    generator = torch.Generator().manual_seed(1)
    sizes = median * torch.exp(sigma * torch.randn(count, generator=generator))
    return sizes.clamp(16, 1024).long().tolist()
