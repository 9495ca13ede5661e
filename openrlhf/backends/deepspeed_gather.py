"""Whole tensors out of what ranks hold parts of, a bucket at a time. Collective."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import deepspeed
from deepspeed.runtime.zero.partition_parameters import is_zero_param
from torch import Tensor

from openrlhf.backends.deepspeed_tensor_parallel import whole
from openrlhf.models.merged import Source

GATHER_BYTES = 512 * 2**20  # a bucket of whole weights that stage 3 puts together at a time


def gathered(sources: Mapping[str, Source], cut: Mapping[str, int]) -> Iterator[tuple[str, Tensor]]:
    """Each of ``sources`` gathered, tied ones once; ``cut`` names those that tensor parallelism cut. Collective."""
    once: dict[tuple[int, ...], tuple[str, Source]] = {}
    for name, source in sources.items():
        once.setdefault(tuple(id(part) for part in source.parts), (name, source))
    for bucket in _buckets(once.values()):
        with _whole_here([part for _, source in bucket for part in source.parts]):
            for name, source in bucket:
                parts = [part.detach() for part in source.parts]
                yield name, source.make(*(whole(part, cut[name]) if name in cut else part for part in parts))


def _buckets(sources: Iterable[tuple[str, Source]]) -> Iterator[list[tuple[str, Source]]]:
    """Runs of tensors of at most ``GATHER_BYTES`` when whole, at least one each."""
    bucket: list[tuple[str, Source]] = []
    size = 0
    for name, source in sources:
        whole = sum(_elements(part) * part.element_size() for part in source.parts)
        if bucket and size + whole > GATHER_BYTES:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, source))
        size += whole
    if bucket:
        yield bucket


def _elements(tensor: Any) -> int:
    """Elements of the whole tensor; DeepSpeed keeps the number where the shard does not tell it."""
    return int(tensor.ds_numel if is_zero_param(tensor) else tensor.numel())


def _whole_here(tensors: list[Tensor]) -> AbstractContextManager[Any]:
    sharded = {id(tensor): tensor for tensor in tensors if is_zero_param(tensor)}  # a tied one once
    return deepspeed.zero.GatheredParameters(list(sharded.values())) if sharded else nullcontext()
