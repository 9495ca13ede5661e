"""Norms that compute in their model's own type. Transformers' go through float32, also in a model of float64: with them
two orders of the same sums, of gradients say, differ by 1e-7."""

from __future__ import annotations

from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers.models.granite.modeling_granite import GraniteRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

Model = TypeVar("Model", bound=nn.Module)


def with_exact_norms(model: Model) -> Model:
    """The same model, whose norms of these families are replaced in place."""
    for module in model.modules():
        if isinstance(module, Qwen3RMSNorm | Qwen2RMSNorm | LlamaRMSNorm | MistralRMSNorm | GraniteRMSNorm):
            module.forward = partial(rms_norm, weight=module.weight, eps=module.variance_epsilon)  # type: ignore[method-assign]
    return model


def rms_norm(states: Tensor, weight: Tensor, eps: float) -> Tensor:
    return torch.nn.functional.rms_norm(states, weight.shape, weight, eps)
