"""A model's weights as it computes with them: adapters added in and 4-bit weights spelled out, in tensors of their own.

The model itself is never merged: adding an adapter to bfloat16 weights and taking it away again does not give the old
weights back, and 4-bit ones could not hold the sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from torch import Tensor
from transformers import PreTrainedModel

from openrlhf.models.four_bits import dequantised

BASE, HEAD, OLD_HEAD = ".base_layer", ".modules_to_save.default", ".original_module"  # PEFT's names


@dataclass(frozen=True)
class Source:
    """A tensor to come: ``make(*parts)`` once every part, which may be sharded, is whole."""

    parts: tuple[Tensor, ...]
    make: Callable[..., Tensor] = lambda part: part


def merged(hf: PreTrainedModel) -> dict[str, Source]:
    """The names of the model without its adapter, and what each tensor is made of; a tied one stands there twice.

    W + s·B·A is computed in float32 and stays in it; everything else has the dtype it has in the model.
    """
    layers = {name: module for name, module in hf.named_modules() if isinstance(module, LoraLayer)}
    own = dict(hf.named_parameters(remove_duplicate=False)) | dict(hf.named_buffers(remove_duplicate=False))
    sources = {}
    for name, tensor in hf.state_dict(keep_vars=True).items():
        if ".lora_" in name or OLD_HEAD in name or name not in own:  # a 4-bit weight brings its scales along
            continue
        layer = _layer(name, layers)
        plain = name.replace(BASE, "").replace(HEAD, "")
        sources[plain] = _unadapted(tensor) if layer is None else _adapted(tensor, layer)
    return sources


def check_syncs(hf: PreTrainedModel) -> None:
    """Raise ValueError for an adapter that an engine cannot be given: beside one use of a tensor that is used twice."""
    layers = {name for name, module in hf.named_modules() if isinstance(module, LoraLayer)}
    if hf.config.tie_word_embeddings and any(f"{name}.weight" in hf.all_tied_weights_keys for name in layers):
        raise ValueError(
            "--target_modules: the head of this model is its embedding, and an adapter on one of them unties what the "
            "vLLM engines hold once: leave the head out"
        )


def _layer(name: str, layers: dict[str, Any]) -> Any:
    """The adapter's layer that changes the tensor, or None. On experts there is one around the other."""
    *outer, leaf = name.split(BASE)
    for depth in range(1, len(outer) + 1):
        layer = layers[BASE.join(outer[:depth])]
        if leaf == f".{layer.parameter_name if isinstance(layer, ParamWrapper) else 'weight'}":
            return layer
    return None


def _unadapted(tensor: Tensor) -> Source:
    return Source((tensor,), _opener(tensor)) if tensor.dtype == torch.uint8 else Source((tensor,))


def _adapted(tensor: Tensor, layer: Any) -> Source:
    (adapter,) = layer.lora_A.keys()
    parts = (tensor, layer.lora_A[adapter].weight, layer.lora_B[adapter].weight)
    if isinstance(layer, ParamWrapper):
        return Source(parts, lambda weight, a, b: weight.float() + layer.get_delta_weight(adapter).detach().float())
    open_, scale, turned = _opener(tensor), layer.scaling[adapter], layer.fan_in_fan_out

    def add(weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
        product = b.float() @ a.float()
        return open_(weight).float() + scale * (product.T if turned else product)

    return Source(parts, add)


def _opener(tensor: Any) -> Callable[[Tensor], Tensor]:
    """How the tensor's numbers are read: only packed 4-bit weights are bytes."""
    return partial(dequantised, state=tensor.quant_state) if tensor.dtype == torch.uint8 else lambda weight: weight
