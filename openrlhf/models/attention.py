"""Attention for packed rows without the flash-attn package, registered with Transformers.

With ``cu_seq_lens_q`` among its arguments the function attends inside each segment only; without, it is Transformers'
own scaled-dot-product attention. With ``ring_slice`` the keys come from all ranks of a ring first; with ``key_slots``
those of a segment come from anywhere in the row. On CUDA in half precision the segments go through torch's
variable-length FlashAttention, elsewhere through one scaled-dot-product call for each run of equally long segments.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from openrlhf.models.ring_attention import Slice, attend_over_ring

NAME = "openrlhf"


class KeysReady(Exception):
    """Leaves a layer as soon as its keys and values are known."""


@dataclass
class Keys:
    """Keys and values of one run through a layer for the queries of the next."""

    known: tuple[Tensor, Tensor] | None = None

    def exchange(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the first run. Raises KeysReady in that run."""
        if self.known is None:
            self.known = key, value
            raise KeysReady
        return self.known


_mask_wanted: ContextVar[bool] = ContextVar("mask_wanted", default=True)


@contextmanager
def no_attention_mask() -> Iterator[None]:
    """Inside, Transformers builds no (N, N) mask: the segment borders say everything."""
    token = _mask_wanted.set(False)
    try:
        yield
    finally:
        _mask_wanted.reset(token)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    ring_slice: Slice | None = None,
    keys: Keys | None = None,
    key_slots: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention function as Transformers calls it: query (B, heads, T, D), key and value (B, kv_heads, T, D).

    Returns (B, T, heads, D). Raises ValueError for a variant of attention that packing does not know.
    """
    if keys is not None:
        key, value = keys.exchange(key, value)
    if key_slots is not None:
        key, value = key[:, :, key_slots], value[:, :, key_slots]
    if cu_seq_lens_q is None or cu_seq_lens_k is None or max_length_q is None or max_length_k is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, sliding_window=sliding_window, **options
        )
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None]
    if unknown:
        raise ValueError(f"--packing_samples does not support this model's attention ({unknown[0]}); leave it out")
    borders, longest = (cu_seq_lens_q, cu_seq_lens_k), (max_length_q, max_length_k)

    def packed(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and dropout == 0 and _varlen() is not None:
            return _attend_varlen(query, key, value, borders, longest, scaling, sliding_window)
        lengths = list(zip(*(part.diff().tolist() for part in borders), strict=True))
        return _attend_segments(query, key, value, lengths, dropout, scaling, sliding_window)

    if ring_slice is not None:
        return attend_over_ring(query, key, value, ring_slice, packed), None
    return packed(query, key, value), None


def _attend_segments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: list[tuple[int, int]],
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """One call for each run of neighbouring segments of one length: (1, heads, N, D) → (1, N, heads, D).

    ``lengths`` are the queries and the keys of each segment; its queries stand at the end of its keys.
    """
    runs = [(length, sum(1 for _ in run)) for length, run in groupby(lengths) if length[0] > 0]
    queries = query[0].split([n * count for (n, _), count in runs], dim=1)
    keys, values = (x[0].split([m * count for (_, m), count in runs], dim=1) for x in (key, value))
    outputs = []
    for ((n, m), count), q, k, v in zip(runs, queries, keys, values, strict=True):
        q = q.unflatten(1, (count, n)).transpose(0, 1)  # (count, heads, n, D)
        k, v = (x.unflatten(1, (count, m)).transpose(0, 1) for x in (k, v))
        plain = n == m and (window is None or m <= window)
        mask = None if plain else _mask_between(n, m, window, query.device)
        out = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=plain, scale=scaling, enable_gqa=True
        )
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[None]


def _mask_between(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """(queries, keys) bool, the queries being the last tokens: a token sees itself and all before it, or the
    ``window`` − 1 tokens before it."""
    at = torch.arange(keys, device=device)
    distance = at[keys - queries :, None] - at
    return (distance >= 0) & (distance < (window or keys))


@cache
def _varlen() -> Callable[..., Any] | None:
    """torch's variable-length FlashAttention, where this torch has it."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


@cache
def _varlen_takes(option: str) -> bool:
    function = _varlen()
    return function is not None and option in inspect.signature(function).parameters


def _attend_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    borders: tuple[Tensor, Tensor],
    longest: tuple[int, int],
    scaling: float | None,
    window: int | None,
) -> Tensor:
    function = _varlen()
    assert function is not None
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (N, heads, D)
    options: dict[str, Any] = {}
    if q.shape[1] != k.shape[1]:
        if _varlen_takes("enable_gqa"):
            options["enable_gqa"] = True
        else:  # torch 2.11
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    if scaling is not None:
        if _varlen_takes("scale"):
            options["scale"] = scaling
        else:
            q = q * (scaling * q.shape[-1] ** 0.5)
    left = -1 if window is None else window - 1
    return function(q, k, v, *borders, *longest, window_size=(left, 0), **options)[None]


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    return sdpa_mask(*args, **kwargs) if _mask_wanted.get() else None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, _mask)
