"""Weights in 4 bits, frozen, for adapters to train beside (QLoRA, Dettmers et al. 2023, arXiv:2305.14314)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig


def four_bits(dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with doubly quantised scales; products are computed in ``dtype``."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def keep_gradients(model: nn.Module) -> None:
    """On some CPUs a quantised layer packs its weight anew in the first forward in ``eval`` mode, and from then on its
    gradients are wrong without a word. Keep it from that."""
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def dequantised(packed: Tensor, state: Any) -> Tensor:
    """The numbers that a packed weight stands for, in the dtype it was quantised from. ``state`` is its scales."""
    from bitsandbytes.functional import dequantize_4bit

    numbers: Tensor = dequantize_4bit(packed, state)
    return numbers
