"""Bytes on one device, by what they are for.

States are 16 bytes a weight: two each for itself and its gradient, twelve for the optimizer's master copy and moments
in float32 (Rajbhandari et al. 2020, arXiv:1910.02054, section 3.1, which also says what each stage of ZeRO divides).
Activations are what each layer keeps for the backward pass, without the attention matrix, which fused attention never
builds; with recomputation a layer keeps its input alone (Korthikanti et al. 2022, arXiv:2205.05198, sections 4 and 5,
who count a GPT; ``Shape.kept_numbers`` counts a Llama). Logits are built a chunk at a time (``models/head.py``).
"""

from __future__ import annotations

from openrlhf.config.groups import DeepSpeedConfig, ModelConfig
from openrlhf.models.head import CHUNK_ELEMENTS, KEPT_ELEMENTS
from openrlhf.plan.shape import Shape

Parts = dict[str, float]  # component → bytes

BUCKET = 5e8  # elements that DeepSpeed reduces at a time
AHEAD = 2  # layers whose weights stage 3 holds whole at a time
ENGINE_SCRATCH = 2e9  # activations and CUDA graphs of vLLM
CONTEXT = 1.5e9  # CUDA and NCCL in a process
HOST = 250e9  # bytes of host memory beside a GPU, as in machines of eight with 2 TB
FRAGMENTS = 0.05  # share of the memory that the allocator cannot use


def usable(memory: float) -> float:
    return memory * (1 - FRAGMENTS)


def states(shape: Shape, model: ModelConfig, sharding: DeepSpeedConfig, workers: int) -> Parts:
    """Weights, gradients and optimizer of a model on one of ``workers`` devices; a frozen one has weights alone."""
    stage, wide = sharding.zero_stage, number_bytes(model)
    cut = sharding.ds_tensor_parallel_size
    ranks = max(1, workers // cut)
    own = 0.5 if model.load_in_4bit else wide
    master = 12 if model.bf16 else 8  # in float32 the weights are their own master copy
    found = {
        "weights": own * shape.parameters / cut / (ranks if stage == 3 else 1),
        "gradients": wide * shape.learns / cut / (ranks if stage >= 2 else 1),
        "optimizer": 0.0 if sharding.adam_offload else master * shape.learns / cut / (ranks if stage >= 1 else 1),
    }
    return {name: size for name, size in found.items() if size}


def in_host_memory(shape: Shape, model: ModelConfig, sharding: DeepSpeedConfig, workers: int) -> float:
    """What ``--adam_offload`` keeps there for each device."""
    if not sharding.adam_offload:
        return 0.0
    ranks = max(1, workers // sharding.ds_tensor_parallel_size)
    return (12 if model.bf16 else 8) * shape.learns / sharding.ds_tensor_parallel_size / ranks


def working_set(
    shape: Shape, model: ModelConfig, sharding: DeepSpeedConfig, tokens: float, device: str = "cuda"
) -> Parts:
    """What a micro-batch of ``tokens`` tokens takes beside the states; a frozen model keeps nothing for a backward."""
    tokens, wide = tokens / model.ring_attn_size, number_bytes(model)
    layer = wide * shape.kept_numbers * tokens / sharding.ds_tensor_parallel_size
    kept = wide * shape.layers * shape.hidden * tokens if model.gradient_checkpointing else layer * (shape.layers - 1)
    logits = min(tokens * shape.vocabulary, CHUNK_ELEMENTS[device])
    found = {
        "activations": layer + (kept if shape.learns else 0.0),
        "logits": 4.0 * (3 * logits + (min(tokens * shape.vocabulary, KEPT_ELEMENTS[device]) if shape.learns else 0)),
    }
    if sharding.zero_stage == 3:
        found["gathered layers"] = wide * (AHEAD * layer_parameters(shape) + shape.vocabulary * shape.hidden)
    if sharding.zero_stage >= 1 and shape.learns and device == "cuda":
        found["buckets"] = wide * min(BUCKET, shape.learns)
    return found


def kv_slots(shape: Shape, memory: float, share: float, width: int, length: int) -> int:
    """Texts of ``length`` tokens that an engine over ``width`` devices holds at a time; below 1 it cannot start."""
    room = share * memory - engine_weights(shape, width) - ENGINE_SCRATCH
    return int(width * room // (shape.kv_bytes * length)) if room > 0 else 0


def engine_weights(shape: Shape, width: int) -> float:
    return 2 * shape.parameters / width


def layer_parameters(shape: Shape) -> float:
    """Of one decoder layer: what is not an embedding, divided evenly."""
    return max(0, shape.parameters - shape.vocabulary * shape.hidden) / shape.layers


def number_bytes(model: ModelConfig) -> int:
    return 2 if model.bf16 else 4


def total(parts: Parts) -> float:
    return sum(parts.values())
