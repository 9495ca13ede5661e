"""What of a model decides its memory and its time."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from openrlhf.config.groups import ModelConfig
from openrlhf.models.folder import count_parameters
from openrlhf.models.load import load_config


@dataclass(frozen=True)
class Shape:
    """``learns`` are the parameters that are trained: all of them, or an adapter's. ``width`` is heads × head_dim.
    In a mixture a token passes ``experts`` of a layer, ``inner`` wide, and none of ``idle``, the parameters of the
    others; ``normed_heads`` is whether queries and keys have a norm of their own."""

    parameters: int
    learns: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    inner: int  # width of the feed-forward layers, or of an expert
    experts: int = 0
    idle: int = 0
    normed_heads: bool = False

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_bytes(self) -> int:
        """Of one token in an engine's attention cache: keys and values of every layer in two bytes."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 2

    def kept_bytes(self, wide: int) -> int:
        """What a layer keeps of a token for the backward pass, in numbers of ``wide`` bytes where not said otherwise.

        Of the hidden size what goes into the two norms, in float32, and four numbers more, what the norms made and what
        they hand on; the latter with an adapter only, since weights that do not learn need no input. Of the
        feed-forward width four: gate, up, gate after its activation, their product. Then queries, what attention
        gives, keys and values; what goes into the norms of heads, in float32, and what they made. As counted in Llama,
        Qwen3 and Qwen3-MoE; fused attention keeps no matrix.
        """
        adapter = 0 < self.learns < self.parameters
        keys = self.kv_heads * self.head_dim
        numbers = (2 if adapter else 4) * self.hidden + 2 * self.width + 2 * keys + 4 * self.inner
        if self.experts:  # each reads and answers for itself, and the answers are added up
            numbers += (self.experts - 1) * 4 * self.inner + self.experts * 2 * self.hidden
        floats = 2 * self.hidden
        if self.normed_heads:
            numbers += 0 if adapter else self.width + keys
            floats += self.width + keys
        return wide * numbers + 4 * floats

    def forward_flops(self, length: float) -> float:
        """Per token: two for each weight that it passes, and the causal half of attention over ``length`` tokens."""
        return 2 * (self.parameters - self.idle) + 2 * self.layers * self.width * length

    def train_flops(self, length: float) -> float:
        """Per token, forward and backward: 6·N + 6·L·width·T (Chowdhery et al. 2022, arXiv:2204.02311, appendix B, of
        whose attention the causal half is computed)."""
        return 3 * self.forward_flops(length)


def _sizes(kind: str, hidden: int, inner: int, layers: int, heads: int, kv: int, **more: Any) -> dict[str, Any]:
    qwen = kind == "qwen2"
    return {
        "model_type": kind, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv, "vocab_size": 151936 if qwen else 128256, **more,
    }  # fmt: skip


# Qwen2.5 and Llama 3.1, as their config.json say.
NAMED = {
    "0.5B": _sizes("qwen2", 896, 4864, 24, 14, 2, tie_word_embeddings=True),
    "1.5B": _sizes("qwen2", 1536, 8960, 28, 12, 2, tie_word_embeddings=True),
    "3B": _sizes("qwen2", 2048, 11008, 36, 16, 2, tie_word_embeddings=True),
    "7B": _sizes("qwen2", 3584, 18944, 28, 28, 4, vocab_size=152064),
    "8B": _sizes("llama", 4096, 14336, 32, 32, 8),
    "14B": _sizes("qwen2", 5120, 13824, 48, 40, 8, vocab_size=152064),
    "32B": _sizes("qwen2", 5120, 27648, 64, 40, 8, vocab_size=152064),
    "70B": _sizes("llama", 8192, 28672, 80, 64, 8),
    "405B": _sizes("llama", 16384, 53248, 126, 128, 8),
}
FREE = re.compile(r"(\d+)x(\d+)")


def find_shape(model: str, flag: str, settings: ModelConfig, scores: bool = False) -> Shape:
    """Of a size (8B), of HIDDENxLAYERS (4096x32), or of a folder or hub name.

    Raises ValueError naming ``flag`` when it is none of them.
    """
    if model.upper() in NAMED:
        return shape_of(_config(NAMED[model.upper()]), settings, scores)
    if free := FREE.fullmatch(model):
        hidden, layers = int(free[1]), int(free[2])
        heads = max(1, hidden // 128)
        sizes = _sizes("qwen2", hidden, 7 * hidden // 2, layers, heads, min(8, heads), head_dim=128)
        return shape_of(_config(sizes), settings, scores)
    if "/" not in model and not Path(model).exists():
        raise ValueError(
            f"{flag} {model}: no such folder; give one, a size ({', '.join(NAMED)}), or HIDDENxLAYERS as in 4096x32."
        )
    try:
        config = load_config(model, settings, flag)
    except ValueError as error:
        raise ValueError(f"{error}, or a size: {', '.join(NAMED)}, or HIDDENxLAYERS") from error
    return shape_of(config, settings, scores)


def shape_of(config: PreTrainedConfig, settings: ModelConfig, scores: bool = False) -> Shape:
    counted = count_parameters(config, scores, settings)
    values = config.get_text_config().to_dict()
    heads, hidden = values["num_attention_heads"], values["hidden_size"]
    several = values.get("num_experts") or values.get("num_local_experts") or values.get("n_routed_experts") or 0
    chosen = int(values.get("num_experts_per_tok") or 0) if counted.experts and several else 0
    inner = values.get("intermediate_size") or 4 * hidden
    return Shape(
        parameters=counted.every,
        learns=counted.learns,
        layers=values["num_hidden_layers"],
        hidden=hidden,
        heads=heads,
        kv_heads=values.get("num_key_value_heads") or heads,
        head_dim=values.get("head_dim") or hidden // heads,
        vocabulary=values["vocab_size"],
        inner=(values.get("moe_intermediate_size") or inner) if chosen else inner,
        experts=chosen,
        idle=counted.experts * (several - chosen) // several if chosen else 0,
        normed_heads=counted.normed_heads,
    )


def frozen(shape: Shape) -> Shape:
    return replace(shape, learns=0)


def _config(sizes: dict[str, Any]) -> PreTrainedConfig:
    given = dict(sizes)
    found: PreTrainedConfig = AutoConfig.for_model(given.pop("model_type"), **given)
    return found
