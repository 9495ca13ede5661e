"""Models loaded for DeepSpeed: sharded while they are loaded at stage 3, and alike on ranks that share one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate import init_empty_weights
from deepspeed.utils import set_z3_leaf_module
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

from openrlhf.backends.deepspeed_plan import tensor_parallel_config
from openrlhf.models.causal_lm import CausalLM
from openrlhf.models.teacher import Teacher
from openrlhf.models.value_head import ScoreModel

Wrapped = CausalLM | ScoreModel | Teacher


def load(build: Callable[[], Wrapped], config: dict[str, Any], tensor_parallel: int, device: torch.device) -> Wrapped:
    """``build()``, and into ``config`` how DeepSpeed is to cut it for ``tensor_parallel`` ranks.

    Ranks that share a model must begin with the same head, also where ``build`` draws it: all draw what rank 0 would.
    DeepSpeed sees to that only among the ranks that hold the same parts.
    """
    if tensor_parallel == 1:
        return _sharded(build, config)
    state = torch.get_rng_state().to(device)
    dist.broadcast(state, src=0)
    torch.set_rng_state(state.cpu())
    module = _sharded(build, config)
    config["tensor_parallel"] = tensor_parallel_config(module.hf, tensor_parallel)
    return module


def _sharded(build: Callable[[], Wrapped], config: dict[str, Any]) -> Wrapped:
    """``build()``; at stage 3, ``from_pretrained`` inside it shards each weight as it is loaded.

    Transformers looks the configuration up in a global of its own; it is unset afterwards, so that a model of another
    stage can be loaded in the same process.
    """
    if config["zero_optimization"]["stage"] != 3:
        return build()
    alive = HfDeepSpeedConfig(config)  # Transformers holds it by a weak reference
    try:
        module = build()
    finally:
        unset_hf_deepspeed_config()
        del alive
    restore_buffers(module.hf)
    for part in parts_called_unequally(module.hf):
        set_z3_leaf_module(part, True)
    return module


def parts_called_unequally(hf: PreTrainedModel) -> Iterator[nn.Module]:
    """Modules whose children run as often as the data say: heads with an adapter, which see a chunk of tokens at a
    time, and lists of experts. Stage 3 must gather such a part as a whole, or ranks would wait for each other."""
    head = hf.get_output_embeddings()
    if head is not None and any(head.children()):
        yield head
    for module in hf.modules():
        if any(name == "experts" and isinstance(child, nn.ModuleList) for name, child in module.named_children()):
            yield module


def restore_buffers(hf: PreTrainedModel) -> None:
    """Give the buffers that no file holds, the rotary frequencies, the values and dtype they have at other stages.

    While DeepSpeed shards, it casts every new tensor to the model's dtype. Frequencies rounded to bfloat16 turn the
    thousandth position by a fifth of a radian, and the vLLM engines do not round theirs.
    """
    saved = hf.state_dict().keys()
    for name, buffer in skeleton(hf).named_buffers():
        if name not in saved:
            owner, _, leaf = name.rpartition(".")
            hf.get_submodule(owner).register_buffer(leaf, buffer.to(hf.get_buffer(name).device), persistent=False)


def skeleton(hf: PreTrainedModel) -> PreTrainedModel:
    """A model like ``hf`` with its buffers, and with weights that have no memory yet."""
    with init_empty_weights(include_buffers=False), _default_dtype(hf.dtype):
        return type(hf)(hf.config)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
