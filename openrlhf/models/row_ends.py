"""The state at the end of each row, for less than those of every token.

A score is read at one token of a row. All that the last layer owes it of the other tokens are their keys and values,
so for them its attention and feed-forward are left out: of L layers nearly 1 / L of the work, forward and backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from openrlhf.models.attention import NAME, Keys, KeysReady

# Their layers look at other tokens in our attention alone, and take what Llama's take. tests/models/test_row_ends.py
# holds each of them against the whole layer.
# fmt: off
FAMILIES = frozenset({
    "arcee", "gemma", "gemma3_text", "glm", "glm4", "llama", "ministral", "mistral", "mixtral", "olmo", "olmo2",
    "olmo3", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3",
})
# fmt: on


@dataclass(frozen=True)
class Ends:
    """Tokens [rows, columns] of what the decoder is given, both (R, n): in each of its R rows, n of them.

    ``borders`` are those of the queries where rows are packed.
    """

    rows: Tensor
    columns: Tensor
    borders: Tensor | None = None

    def of(self, x: Tensor) -> Tensor:
        """(R, T, …) → (R, n, …)."""
        return x[self.rows, self.columns]


def last_layer(decoder: nn.Module) -> nn.Module | None:
    """The layer that ``only_at`` can narrow; None where the decoder's every state must be made.

    That is so for other families and other attention, and where somebody hooked himself into the layer, as ZeRO-3 does:
    his hooks would not see each module run once.
    """
    assert isinstance(decoder, PreTrainedModel)
    if decoder.config.model_type not in FAMILIES or decoder.config._attn_implementation != NAME:
        return None
    layers = decoder.get_submodule("layers")
    assert isinstance(layers, nn.ModuleList)
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in layers[-1].modules())
    return None if hooked else layers[-1]


@contextmanager
def only_at(layer: nn.Module, ends: Ends) -> Iterator[None]:
    """Inside, ``layer`` answers with the states of the ``ends`` alone, (R, n, H).

    It runs twice: over all tokens until their keys and values are known, then over the ends, which attend to those.
    It is not recomputed in the backward pass: what it keeps is less than a recomputed layer has at once.
    """
    original, recomputed = layer.forward, layer.gradient_checkpointing

    def narrow(
        states: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        **options: Any,
    ) -> Any:
        where = {"position_ids": position_ids, "position_embeddings": position_embeddings}
        keys = Keys()
        with suppress(KeysReady):
            original(states, attention_mask=attention_mask, keys=keys, **where, **options)
        where = {"position_ids": ends.of(position_ids), "position_embeddings": tuple(map(ends.of, position_embeddings))}
        mask = None if attention_mask is None else ends.of(attention_mask.transpose(1, 2)).transpose(1, 2)
        if ends.borders is not None:
            options = {**options, "cu_seq_lens_q": ends.borders, "max_length_q": 1}
        return original(ends.of(states), attention_mask=mask, keys=keys, **where, **options)

    layer.forward, layer.gradient_checkpointing = narrow, False  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        layer.forward, layer.gradient_checkpointing = original, recomputed  # type: ignore[method-assign]
