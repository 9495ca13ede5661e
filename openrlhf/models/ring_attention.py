"""One packed row on several ranks: each holds a slice of its tokens and sees the keys of the others.

A *ring* is the ranks that share rows. The decoder runs on a rank's own slice; only attention looks further: the keys
and values of a few heads at a time are gathered over the ring, and a query attends to those of its own sample up to
itself. Softmax runs once over all of them, so the result is that of one rank, exactly. Nothing gathered is kept for
the backward pass, which gathers again: a rank keeps the activations of its own tokens, and for a moment the keys and
values of ``head_stride`` heads, or of one layer where layers are recomputed. After Ring Attention (Liu et al. 2023,
arXiv:2310.01889), with the gather in place of passing blocks around, as Llama 3 does (arXiv:2407.21783, section 3.3.2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

try:
    from torch.distributed import all_gather_single, reduce_scatter_single
except ImportError:  # torch 2.11
    from torch.distributed import all_gather_into_tensor as all_gather_single
    from torch.distributed import reduce_scatter_tensor as reduce_scatter_single

# query (1, heads, n, D), key and value (1, kv_heads, K, D) → (1, n, heads, D)
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Ring:
    """The place of this process among the ``size`` ranks that share rows."""

    group: dist.ProcessGroup
    rank: int
    size: int
    head_stride: int  # key-value heads that are gathered at a time
    recomputed: bool = False  # the backward pass runs whole layers again, so attention need not gather again by itself


@dataclass(frozen=True)
class Slice:
    """What a rank holds of a packed row of N tokens: the ``size`` tokens from ``start`` on.

    It touches ``lengths`` tokens of one or more neighbouring samples; the first of these began ``before`` tokens
    earlier, on the ranks before this one. A dataclass and not a tuple, so that wrappers of a model's layers hand it on
    untouched.
    """

    ring: Ring
    start: int
    size: int
    lengths: tuple[int, ...]
    before: int

    @property
    def key_lengths(self) -> tuple[int, ...]:
        """Keys that the queries of each sample see, those of earlier ranks included."""
        return (self.lengths[0] + self.before, *self.lengths[1:])


def cut(lengths: list[int], ring: Ring) -> Slice:
    """This rank's slice of samples with these lengths, whose sum is a positive multiple of the ring's size."""
    size = sum(lengths) // ring.size
    start = ring.rank * size
    inside: list[int] = []
    before = first = 0
    for length in lengths:
        here = min(first + length, start + size) - max(first, start)
        if here > 0:
            before = before if inside else max(start - first, 0)
            inside.append(here)
        first += length
    return Slice(ring, start, size, tuple(inside), before)


def attend_over_ring(query: Tensor, key: Tensor, value: Tensor, part: Slice, attend: Attend) -> Tensor:
    """Attention of this rank's queries (1, heads, n, D) to the keys and values of all ranks; those of this rank come
    as (1, kv_heads, n, D). Returns (1, n, heads, D)."""

    def some_heads(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend(query, *_gather_keys(key, value, part))

    stride = part.ring.head_stride
    shared = query.shape[1] // key.shape[1]  # query heads of a key-value head
    pieces = zip(query.split(stride * shared, dim=1), key.split(stride, dim=1), value.split(stride, dim=1), strict=True)
    run = some_heads if part.ring.recomputed else partial(checkpoint, some_heads, use_reentrant=False)
    outputs = [run(*piece) for piece in pieces]
    return torch.cat(outputs, dim=2)


def together(x: Tensor, ring: Ring | None) -> Tensor:
    """Where each rank of a ring has its entries of ``x`` and zeros elsewhere: the whole, the same on every rank.

    A rank's gradient flows back to its own entries alone, so the ring's parameter gradients are to be added up.
    """
    whole: Tensor = x if ring is None else _Together.apply(x, ring)
    return whole


def _gather_keys(key: Tensor, value: Tensor, part: Slice) -> tuple[Tensor, Tensor]:
    """The keys and values (1, heads, K, D) that this rank's queries may see, in one exchange."""
    key, value = (x[0].transpose(0, 1) for x in (key, value))  # (n, heads, D)
    rows = _Gather.apply(torch.cat([key.flatten(1), value.flatten(1)], dim=1), part.ring)
    rows = rows[part.start - part.before : part.start + part.size]
    keys, values = rows.split([key[0].numel(), value[0].numel()], dim=1)
    return tuple(x.unflatten(1, y.shape[1:]).transpose(0, 1)[None] for x, y in ((keys, key), (values, value)))  # type: ignore[return-value]


class _Gather(torch.autograd.Function):
    """(n, W) of each rank → (n · ranks, W); backward adds up what every rank asks of this rank's rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ring: Ring) -> Tensor:
        ctx.ring = ring
        every = x.new_empty(x.shape[0] * ring.size, x.shape[1])
        all_gather_single(every, x.contiguous(), group=ring.group)
        return every

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        ring: Ring = ctx.ring
        own = grad.new_empty(grad.shape[0] // ring.size, grad.shape[1])
        reduce_scatter_single(own, grad.contiguous(), group=ring.group)
        return own, None


class _Together(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ring: Ring) -> Tensor:
        whole = x.clone()
        dist.all_reduce(whole, group=ring.group)
        return whole

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad, None
