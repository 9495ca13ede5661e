"""Tiny models in folders, and ragged batches drawn from a seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.models.qwen3 import Qwen3Config

from openrlhf.types import Batch

VOCABULARY = 97
POLICY, FROZEN, SCORER = "policy", "frozen", "scorer"
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,  # wide, so that log-probabilities differ clearly
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}


def write_models(folder: Path) -> None:
    """A policy, a frozen model a little off it, and a model with one score, in float32."""
    torch.manual_seed(0)
    policy = AutoModelForCausalLM.from_config(Qwen3Config(**SIZES))
    policy.save_pretrained(folder / POLICY)
    disturb(policy)
    with torch.no_grad():  # surer, and mostly wrong: the KL baseline of random answers is then above 0
        policy.get_decoder().norm.weight *= 1.2
    policy.save_pretrained(folder / FROZEN)
    scorer = AutoModelForSequenceClassification.from_config(Qwen3Config(**SIZES | {"num_labels": 1}))
    scorer.save_pretrained(folder / SCORER)


@torch.no_grad()
def disturb(model: PreTrainedModel) -> None:
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape))


def ragged(seed: int, rows: int) -> Batch:
    """Rows of 3 to 20 tokens; what the policy chose begins after a prompt and has gaps, as tool outputs make them.

    Each second row begins as the one before it does, up to the end of the shorter prompt.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 21, (rows, 1), generator=generator)
    lengths[0] = 20
    prompts = (torch.rand(rows, 1, generator=generator) * (lengths - 1)).long().clamp(min=1)
    columns = torch.arange(20)[None]
    attended = columns < lengths
    gaps = torch.rand(rows, 20, generator=generator) < 0.2
    answered = attended & (columns >= prompts)
    tokens = torch.randint(2, VOCABULARY, (rows, 20), generator=generator)
    pairs = rows // 2 * 2
    shared = columns < torch.minimum(prompts[0:pairs:2], prompts[1:pairs:2])
    tokens[1:pairs:2] = tokens[0:pairs:2].where(shared, tokens[1:pairs:2])
    return Batch(
        tokens=tokens,
        attention_mask=attended,
        action_mask=answered & (~gaps | (columns == prompts)),
    )


def noise(seed: int, batch: Batch, scale: float) -> Tensor:
    """(B, T) float64."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return scale * torch.randn(batch.tokens.shape, generator=generator, dtype=torch.float64)


def left_padded(batch: Batch) -> Batch:
    """The same rows with their padding in front."""
    width = batch.tokens.shape[1]
    source = (torch.arange(width)[None] - (width - batch.lengths[:, None])) % width
    return Batch(**{name: x.gather(1, source) if x.dim() == 2 else x for name, x in batch.tensors().items()})
