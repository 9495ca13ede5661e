"""Tensor parallelism by DeepSpeed's AutoTP: which layers are cut, and how their weights come together again.

Neighbouring ranks share a model and read the same rows. The projections of attention and MLP are cut as Transformers'
own plan for the family says: by output features, then by input features, with one sum over the ranks after each pair
(Shoeybi et al. 2019, arXiv:1909.08053). Embeddings, norms and heads stay whole on every rank.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.module_inject.layers import LinearAllreduce, LinearLayer
from deepspeed.utils import groups
from torch import Tensor, nn
from transformers import PreTrainedModel

# Transformers' styles that AutoTP does alike → DeepSpeed's words for them.
STYLES: dict[str, dict[str, Any]] = {
    "colwise": {"partition_type": "column"},
    "rowwise": {"partition_type": "row"},
    # A norm inside the heads: each rank sees its own heads, so the gradients are summed.
    "replicated_with_grad_allreduce": {"partition_type": "skip", "grad_allreduce": True},
}
EMBEDDING = "embedding_rowwise"  # may be cut or whole alike


def tensor_parallel_config(hf: PreTrainedModel, size: int) -> dict[str, Any]:
    """DeepSpeed's ``tensor_parallel`` section for this model on ``size`` ranks.

    Raises ValueError where the family has no plan that AutoTP can follow, or the model does not divide.
    """
    config = hf.config.get_text_config()
    plan = {layer: style for layer, style in (config.base_model_tp_plan or {}).items() if style != EMBEDDING}
    flag, family = f"--ds_tensor_parallel_size {size}", config.model_type
    if unknown := sorted(set(plan.values()) - STYLES.keys()):
        raise ValueError(
            f"{flag}: DeepSpeed cannot cut the layers of {family} ({', '.join(unknown)}); "
            "leave it out and partition the weights with --zero_stage 3"
        )
    if not plan:
        raise ValueError(
            f"{flag}: Transformers has no plan for cutting the layers of {family}; "
            "leave it out and partition the weights with --zero_stage 3"
        )
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if (number := config.to_dict().get(name)) is not None and number % size:
            raise ValueError(
                f"{flag}: the model's {name}, {number}, is not a multiple of {size}; choose a divisor of it"
            )
    specs = [{"patterns": [_pattern(layer)], **STYLES[style]} for layer, style in plan.items()]
    if not any(parameter.requires_grad for parameter in hf.parameters()):
        specs = [spec for spec in specs if spec["partition_type"] != "skip"]  # no gradients to sum
    return {
        "autotp_size": size,
        "vocab_parallel_lm_head": False,
        "partition_config": {"use_default_specs": False, "layer_specs": specs},
    }


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


def _pattern(layer: str) -> str:
    """``layers.*.mlp.up_proj`` → a regular expression for that weight, whatever stands around the decoder."""
    return r"(.*\.)?" + re.escape(layer).replace(r"\*", r"\d+") + r"\.weight$"
