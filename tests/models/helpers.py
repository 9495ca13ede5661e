"""Small models and batches for the tests of openrlhf.models."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.models.cohere import CohereConfig
from transformers.models.gemma3 import Gemma3TextConfig
from transformers.models.granite import GraniteConfig
from transformers.models.llama import LlamaConfig
from transformers.models.mistral import MistralConfig
from transformers.models.qwen2 import Qwen2Config
from transformers.models.qwen3 import Qwen3Config

from certificate.norms import with_exact_norms
from openrlhf.models import attention
from openrlhf.types import Batch

VOCAB = 97
SIZES = {
    "vocab_size": VOCAB,
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
FAMILIES: dict[str, PreTrainedConfig] = {
    "qwen3": Qwen3Config(**SIZES),
    "qwen3 tied": Qwen3Config(**SIZES, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SIZES),
    "llama": LlamaConfig(**SIZES),
    "mistral, window 3": MistralConfig(**SIZES, sliding_window=3),
    "gemma3, window 3, capped": Gemma3TextConfig(**SIZES, sliding_window=3, final_logit_softcapping=2.0),
    "granite": GraniteConfig(**SIZES, logits_scaling=3.0),
    "cohere": CohereConfig(**SIZES, logit_scale=0.25),
}


def build(family: str = "qwen3", dtype: torch.dtype = torch.float64, seed: int = 0) -> PreTrainedModel:
    """A random causal language model with our attention."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(FAMILIES[family], attn_implementation=attention.NAME).to(dtype).train()


def build_scorer(dtype: torch.dtype = torch.float64, seed: int = 0) -> PreTrainedModel:
    """A random sequence classifier with one label and our attention and exact norms."""
    config = Qwen3Config(**SIZES, num_labels=1)
    torch.manual_seed(seed)
    hf = AutoModelForSequenceClassification.from_config(config, attn_implementation=attention.NAME).to(dtype).train()
    return with_exact_norms(hf)


def make_batch(lengths: tuple[int, ...] = (7, 3, 7, 7, 1, 5), seed: int = 0) -> Batch:
    """Ragged rows whose action tokens have gaps; a row's first token may be an action, which counts for nothing."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    attention_mask = torch.arange(shape[1])[None] < torch.tensor(lengths)[:, None]
    return Batch(
        tokens=torch.randint(2, VOCAB, shape, generator=generator),
        attention_mask=attention_mask,
        action_mask=attention_mask & (torch.rand(shape, generator=generator) < 0.7),
    )
