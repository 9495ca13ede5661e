"""Tensor parallelism by DeepSpeed's AutoTP: what was cut, and how it comes together again.

Neighbouring ranks share a model and read the same rows. The projections of attention and MLP are cut as Transformers'
own plan for the family says: by output features, then by input features, with one sum over the ranks after each pair
(Shoeybi et al. 2019, arXiv:1909.08053). Embeddings, norms and heads stay whole on every rank.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from deepspeed.module_inject.layers import LinearAllreduce, LinearLayer
from deepspeed.utils import groups
from torch import Tensor, nn


def cut_dimensions(module: nn.Module) -> dict[str, int]:
    """Names of the parameters that each rank holds a part of, and the dimension they were cut along."""
    dimensions: dict[str, int] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, LinearLayer):
            dimensions |= {f"{name}.{own}": 0 for own, _ in layer.named_parameters(recurse=False)}
        elif isinstance(layer, LinearAllreduce):
            dimensions[f"{name}.weight"] = 1  # its bias is added once, after the sum
    return dimensions


def whole(part: Tensor, dimension: int) -> Tensor:
    """The weight that the ranks hold equal parts of. Collective."""
    group = groups.get_tensor_model_parallel_group()
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, part.contiguous(), group=group)
    return torch.cat(parts, dim=dimension)


def gradient_norm(module: nn.Module, cut: dict[str, int]) -> Tensor:
    """The 2-norm over all gradients of the whole model, of which ``cut`` names the parts: what every rank holds counts
    once. Collective where there are parts."""
    first = not cut or dist.get_rank(groups.get_tensor_model_parallel_group()) == 0
    norms = [
        torch.linalg.vector_norm(parameter.grad, dtype=torch.float32)
        for name, parameter in module.named_parameters()
        if parameter.grad is not None and (first or name in cut)
    ]
    square = torch.stack(norms).square().sum()
    if cut:
        dist.all_reduce(square, group=groups.get_tensor_model_parallel_group())
    return square.sqrt()
