"""What an engine keeps between two steps: where each weight's master copy is, for checkpoints, and sleep and wake:
everything on the device to host memory and back, bit for bit.

Whole storages are moved, not tensors: DeepSpeed's flat buffers are seen through many views, and a storage that is
emptied and filled again in place keeps every one of them valid, whichever ZeRO stage, dtype or adapter made them.
DeepSpeed's own ``offload_states`` wants its compiled FusedAdam at stage 3 and trips over frozen weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.partition_parameters import is_zero_param
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from torch import Tensor

from openrlhf.backends.layout import Layout
from openrlhf.backends.pieces import Piece, whole_weights


@dataclass
class HostCopy:
    """A storage that waits in host memory. ``host`` is None where the content is not worth keeping."""

    storage: torch.UntypedStorage
    size: int  # bytes
    host: torch.UntypedStorage | None


def offload(engine: DeepSpeedEngine, device: torch.device) -> list[HostCopy]:
    """Empty the engine's device memory; ``onload`` gives it back. Call it between a step and the next forward."""
    engine.empty_partition_cache()
    scratch = list(_storages(scratch_tensors(engine), device))
    keys = {storage._cdata for storage in scratch}
    kept = [storage for storage in _storages(kept_tensors(engine), device) if storage._cdata not in keys]
    copies = [HostCopy(storage, storage.nbytes(), _to_host(storage)) for storage in kept]
    copies += [HostCopy(storage, storage.nbytes(), None) for storage in scratch]
    _synchronize(device)
    for copy in copies:
        copy.storage.resize_(0)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return copies


def onload(copies: list[HostCopy], device: torch.device) -> None:
    """Fill the emptied storages again, in place."""
    for copy in copies:
        copy.storage.resize_(copy.size)
        if copy.host is not None:
            copy.storage.copy_(copy.host, non_blocking=True)
    _synchronize(device)


def kept_tensors(engine: DeepSpeedEngine) -> Iterator[Tensor]:
    """Weights, buffers, float32 master weights and optimizer moments."""
    for parameter in engine.module.parameters():
        yield parameter.data
        if is_zero_param(parameter):
            yield parameter.ds_tensor
            if parameter.ds_secondary_tensor is not None:
                yield parameter.ds_secondary_tensor
    yield from engine.module.buffers()
    if engine.basic_optimizer is None:
        return
    for group in engine.basic_optimizer.param_groups:
        yield from group["params"]
    for state in engine.basic_optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))
    if isinstance(engine.optimizer, DeepSpeedZeroOptimizer_Stage3):
        yield from engine.optimizer.fp32_partitioned_groups_flat
    if isinstance(engine.optimizer, BF16_Optimizer):
        yield from engine.optimizer.fp32_groups_gradients_flat


def scratch_tensors(engine: DeepSpeedEngine) -> Iterator[Tensor]:
    """Gradient buffers that stage 3 keeps between steps and overwrites in the next backward."""
    if isinstance(engine.optimizer, DeepSpeedZeroOptimizer_Stage3):
        yield engine.optimizer.grad_partitions_flat_buffer
        yield from (bucket.buffer for bucket in engine.optimizer.ipg_buckets.values() if bucket.buffer is not None)


def pieces(engine: DeepSpeedEngine, layout: Layout) -> list[Piece]:
    """Where this process holds what it alone has to save: at stage 0 in float32 the first copy of several speaks."""
    own = own_pieces(engine, layout)
    return [] if engine.basic_optimizer is engine.optimizer and layout.rank >= layout.tensor else own


def own_pieces(engine: DeepSpeedEngine, layout: Layout) -> list[Piece]:
    """Where this process holds the float32 weights and moments that it steps."""
    names = _trained(engine, layout)
    if isinstance(engine.optimizer, DeepSpeedZeroOptimizer_Stage3):
        return list(_stage3_pieces(engine.optimizer, names))
    if engine.basic_optimizer is engine.optimizer:
        return whole_weights((name, parameter) for parameter, name in names.items())
    groups = [group["params"][0] for group in engine.basic_optimizer.param_groups]
    return [
        Piece(name, parameter.numel(), here.lp_fragment_address.start, here.lp_fragment_address.numel,
              groups[here.param_group_index], here.hp_fragment_address.start)
        for parameter, name in names.items()
        if (here := parameter._hp_mapping) is not None
    ]  # fmt: skip


def _trained(engine: DeepSpeedEngine, layout: Layout) -> dict[Any, str]:
    """Trained weights and their names; where tensor-parallel ranks hold different parts of one, a name for each."""
    part = f"part {layout.rank % layout.tensor}: " if layout.tensor > 1 else ""
    return {p: part + name for name, p in engine.module.named_parameters() if p.requires_grad}


def _stage3_pieces(optimizer: DeepSpeedZeroOptimizer_Stage3, names: dict[Any, str]) -> Iterator[Piece]:
    for group, flat in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
        offset = 0
        for parameter in group:
            share = parameter.partition_numel()
            start = share * optimizer._get_param_partition_rank(parameter)
            size = min(share, parameter.ds_numel - start)  # the last shares are padded
            if size > 0:
                yield Piece(names[parameter], parameter.ds_numel, start, size, flat, offset)
            offset += share


def renew_weights(engine: DeepSpeedEngine) -> None:
    """The weights that the model computes with, from the float32 ones, as after a step. Collective."""
    optimizer = engine.optimizer
    if optimizer is engine.basic_optimizer:
        return
    if not isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        optimizer.update_lp_params()
        return
    optimizer._partition_all_parameters()
    for number in range(len(optimizer.fp16_groups)):
        optimizer._reassign_or_swap_out_partitioned_parameters(number)
    if optimizer.persistent_parameters:
        optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    optimizer.invalidate_secondary_tensor()


def _storages(tensors: Iterable[Tensor], device: torch.device) -> Iterator[torch.UntypedStorage]:
    """Each storage on ``device`` once. One that cannot be resized is mapped from a file and holds nothing."""
    seen: set[int] = set()
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if tensor.device.type != device.type or storage.nbytes() == 0 or not storage.resizable():
            continue
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            yield storage


def _to_host(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    pinned = storage.device.type == "cuda"
    host = torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=pinned).untyped_storage()
    host.copy_(storage, non_blocking=pinned)
    return host


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
