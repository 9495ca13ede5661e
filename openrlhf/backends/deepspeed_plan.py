"""Which layers DeepSpeed's AutoTP cuts, from Transformers' own plan for the family. Pure: imports no DeepSpeed."""

from __future__ import annotations

import re
from typing import Any

from transformers import PreTrainedModel

# Transformers' styles that AutoTP does alike → DeepSpeed's words for them.
STYLES: dict[str, dict[str, Any]] = {
    "colwise": {"partition_type": "column"},
    "rowwise": {"partition_type": "row"},
    # A norm inside the heads: each rank sees its own heads, so the gradients are summed.
    "replicated_with_grad_allreduce": {"partition_type": "skip", "grad_allreduce": True},
}
EMBEDDING = "embedding_rowwise"  # of a tied embedding, which may stay whole as well
ELSE = "leave it out and partition the weights with --zero_stage 3"


def tensor_parallel_config(hf: PreTrainedModel, size: int) -> dict[str, Any]:
    """DeepSpeed's ``tensor_parallel`` section for this model on ``size`` ranks: embeddings and heads stay whole.

    Raises ValueError where the family has no plan that AutoTP can follow, or the model does not divide.
    """
    config = hf.config.get_text_config()
    flag, family = f"--ds_tensor_parallel_size {size}", config.model_type
    plan = {layer: style for layer, style in (config.base_model_tp_plan or {}).items() if style != EMBEDDING}
    if not plan:
        raise ValueError(f"{flag}: Transformers has no plan for cutting the layers of {family}; {ELSE}")
    if unknown := sorted(set(plan.values()) - STYLES.keys()):
        raise ValueError(f"{flag}: DeepSpeed cannot cut the layers of {family} ({', '.join(unknown)}); {ELSE}")
    if unplanned := _unplanned(hf, [_pattern(layer) for layer in plan]):
        raise ValueError(f"{flag}: Transformers' plan for the layers of {family} says nothing of {unplanned}; {ELSE}")
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if (number := config.to_dict().get(name)) is not None and number % size:
            raise ValueError(f"{flag} does not divide the {number} {name} of {family}: choose a size that does")
    specs = [{"patterns": [_pattern(layer) + r"\.weight$"], **STYLES[style]} for layer, style in plan.items()]
    if not any(parameter.requires_grad for parameter in hf.parameters()):
        specs = [spec for spec in specs if spec["partition_type"] != "skip"]  # no gradients to sum
    return {
        "autotp_size": size,
        "vocab_parallel_lm_head": False,
        "partition_config": {"use_default_specs": False, "layer_specs": specs},
    }


def _pattern(layer: str) -> str:
    """``layers.*.mlp.up_proj`` → a regular expression for its name, whatever stands around the decoder."""
    return r"(.*\.)?" + re.escape(layer).replace(r"\*", r"\d+")


def _unplanned(hf: PreTrainedModel, planned: list[str]) -> str | None:
    """A parameter beside cut layers that the plan does not name: nobody knows whether it sees parts or the whole."""
    every = re.compile("|".join(planned))
    parents = {name.rpartition(".")[0] for name, _ in hf.named_modules() if every.fullmatch(name)}
    for name, _ in hf.named_parameters():
        owner = name.rpartition(".")[0]
        inside = owner in parents or owner.rpartition(".")[0] in parents
        if inside and not every.fullmatch(owner):
            return name
    return None
