"""What tensor parallelism cuts, and which models it refuses. Models of no weight: only names and sizes are read."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    GPT2Config,
    LlamaConfig,
    Phi3Config,
    PreTrainedModel,
    Qwen3Config,
    Qwen3MoeConfig,
)

from openrlhf.backends.deepspeed_plan import tensor_parallel_config

SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "pad_token_id": 0,
}  # fmt: skip


def model(config: Any) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def cut(hf: PreTrainedModel) -> dict[str, str]:
    """Name of each weight inside our wrapper → how it is cut."""
    specs = tensor_parallel_config(hf, 2)["partition_config"]["layer_specs"]
    return {
        name: spec["partition_type"]
        for name, _ in hf.named_parameters()
        for spec in specs
        if any(re.match(pattern, f"hf.{name}") for pattern in spec["patterns"])
    }


LLAMA = {
    **{f"model.layers.0.self_attn.{x}_proj.weight": "column" for x in "qkv"},
    "model.layers.0.self_attn.o_proj.weight": "row",
    **{f"model.layers.0.mlp.{x}_proj.weight": "column" for x in ("gate", "up")},
    "model.layers.0.mlp.down_proj.weight": "row",
}
NORMS = {f"model.layers.0.self_attn.{x}_norm.weight": "skip" for x in "qk"}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(**SIZES), LLAMA),
        (LlamaConfig(**SIZES, tie_word_embeddings=True), LLAMA),
        (Qwen3Config(**SIZES, head_dim=8), LLAMA | NORMS),
    ],
)
def test_projections_are_cut_and_nothing_else(config: Any, expected: dict[str, str]) -> None:
    assert cut(model(config)) == expected


def test_a_frozen_model_has_no_gradients_to_sum() -> None:
    assert cut(model(Qwen3Config(**SIZES, head_dim=8)).requires_grad_(False)) == LLAMA


@pytest.mark.parametrize(
    ("config", "size", "sentence"),
    [
        (GPT2Config(n_layer=1, n_embd=32, n_head=4), 2, "no plan for cutting the layers of gpt2"),
        (Phi3Config(**SIZES), 2, "cannot cut the layers of phi3.*rowwise_split_input"),
        (Qwen3MoeConfig(**SIZES, num_experts=4), 2, "cannot cut the layers of qwen3_moe.*moe_tp_experts"),
        (CohereConfig(**SIZES, use_qk_norm=True), 2, "says nothing of model.layers.0.self_attn.q_norm"),
        (LlamaConfig(**SIZES), 3, "does not divide the 4 num_attention_heads"),
        (LlamaConfig(**SIZES), 4, "does not divide the 2 num_key_value_heads"),
        (LlamaConfig(**SIZES | {"intermediate_size": 49}), 2, "does not divide the 49 intermediate_size"),
    ],
)
def test_what_cannot_be_cut_is_refused(config: Any, size: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"--ds_tensor_parallel_size {size}.*{sentence}"):
        tensor_parallel_config(model(config), size)
