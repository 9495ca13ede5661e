"""Tiny models and tokenizers in Hugging Face folders: for the demo, the first example and the tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

PAD, EOS, START = "<|pad|>", "<|im_end|>", "<|im_start|>"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(
    folder: str | Path, texts: Iterable[str] | None = None, vocab_size: int = 259
) -> PreTrainedTokenizerFast:
    """Byte-level BPE over ``texts``, saved in ``folder`` for ``AutoTokenizer``; any text survives encode and decode.

    256 bytes and three special tokens (pad, eos, start of a chat message) are always there; merges fill the rest of
    ``vocab_size`` as far as the texts yield them. Raises ValueError for a smaller ``vocab_size``.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(alphabet) + 3:
        raise ValueError(f"vocab_size {vocab_size}: a byte-level tokenizer needs at least {len(alphabet) + 3}")
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=[PAD, EOS, START], show_progress=False
    )
    core.train_from_iterator(texts or [], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, eos_token=EOS, additional_special_tokens=[START]
    )
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    return tokenizer


def build_model(
    folder: str | Path,
    vocab_size: int,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 2,
    kv_heads: int = 1,
    head_dim: int = 32,
    intermediate: int | None = None,
    tied: bool = True,
    seed: int = 0,
    eos_token_id: int | None = 1,
    pad_token_id: int | None = 0,
) -> Qwen3ForCausalLM:
    """A Qwen3 with random float32 weights, saved in ``folder``. The token ids are those of ``build_tokenizer``."""
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=intermediate or 4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=4096,
        tie_word_embeddings=tied,
        eos_token_id=eos_token_id,
        bos_token_id=None,
        pad_token_id=pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    model.save_pretrained(folder)
    return model
