"""Bytes on one device, by what they are for.

States are 16 bytes a weight: two each for itself and its gradient, twelve for the optimizer's master copy and moments
in float32 (Rajbhandari et al. 2020, arXiv:1910.02054, section 3.1, which also says what each stage of ZeRO divides).
Activations are what each layer keeps for the backward pass, without the attention matrix, which fused attention never
builds; with recomputation a layer keeps its input alone (Korthikanti et al. 2022, arXiv:2205.05198, sections 4 and 5,
who count a GPT; ``Shape.kept_bytes`` counts a Llama). Logits are built a chunk at a time (``models/head.py``).
What the optimizer's step takes for itself, and where gradients lie with ``--adam_offload``, is DeepSpeed's doing
(``runtime/zero/stage_1_and_2.py`` and ``stage3.py``).
"""

from __future__ import annotations

from openrlhf.config.groups import DeepSpeedConfig, ModelConfig
from openrlhf.models.head import CHUNK_ELEMENTS, KEPT_ELEMENTS
from openrlhf.plan.shape import Shape

Parts = dict[str, float]  # component → bytes

BUCKET = 5e8  # elements that DeepSpeed reduces at a time
SUB_GROUP = 1e9  # elements of the optimizer that a step of stage 3 works on at a time
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
    away = sharding.adam_offload  # then gradients go to host memory as they are made
    added = 4 if sharding.grad_accum_dtype == "fp32" else wide
    found = {
        "weights": own * shape.parameters / cut / (ranks if stage == 3 else 1),
        "gradients": 0.0 if away else added * shape.learns / cut / (ranks if stage >= 2 else 1),
        "optimizer": 0.0 if away else _optimizer(model, sharding) * shape.learns / cut / (ranks if stage >= 1 else 1),
    }
    return {name: size for name, size in found.items() if size}


def in_host_memory(shape: Shape, model: ModelConfig, sharding: DeepSpeedConfig, workers: int) -> float:
    """What ``--adam_offload`` keeps there for each device: the optimizer, its gradients in float32, and the weights or
    gradients once more as they travel."""
    if not sharding.adam_offload:
        return 0.0
    ranks = max(1, workers // sharding.ds_tensor_parallel_size)
    each = _optimizer(model, sharding) + 4 + number_bytes(model)
    return each * shape.learns / sharding.ds_tensor_parallel_size / ranks


def _optimizer(model: ModelConfig, sharding: DeepSpeedConfig) -> int:
    """Bytes a weight: two moments, and a master copy where the weights are not their own, as in bfloat16 and wherever
    ZeRO has parts of its own."""
    return 12 if model.bf16 or sharding.zero_stage >= 1 else 8


def step_set(shape: Shape, model: ModelConfig, sharding: DeepSpeedConfig, workers: int) -> Parts:
    """What an optimizer's step takes beside the states, when activations are gone: ZeRO flattens the gradients of its
    part and makes them float32, stage 3 one piece after the other."""
    stage, wide = sharding.zero_stage, number_bytes(model)
    if stage == 0 or sharding.adam_offload or not shape.learns:
        return {}
    part = shape.learns / sharding.ds_tensor_parallel_size / max(1, workers // sharding.ds_tensor_parallel_size)
    copies = wide + (4 if wide < 4 and sharding.grad_accum_dtype != "fp32" else 0)
    return {"gradients for the step": copies * (min(part, SUB_GROUP) if stage == 3 else part)}


def busiest(
    shape: Shape, model: ModelConfig, sharding: DeepSpeedConfig, workers: int, tokens: float, device: str = "cuda"
) -> Parts:
    """What is taken beside the states by a micro-batch of ``tokens`` tokens, or by the step where that is more."""
    forward = working_set(shape, model, sharding, tokens, device)
    return max(forward, step_set(shape, model, sharding, workers) if device == "cuda" else {}, key=total)


def working_set(
    shape: Shape, model: ModelConfig, sharding: DeepSpeedConfig, tokens: float, device: str = "cuda"
) -> Parts:
    """What a micro-batch of ``tokens`` tokens takes beside the states; a frozen model keeps nothing for a backward."""
    tokens, wide = tokens / model.ring_attn_size, number_bytes(model)
    cut = sharding.ds_tensor_parallel_size
    layer = shape.kept_bytes(wide) * tokens / cut
    logits, every = min(tokens * shape.vocabulary, CHUNK_ELEMENTS[device]), tokens * shape.vocabulary
    found = {"activations": layer, "logits": 4.0 * 3 * logits}
    if shape.learns:
        recomputes = model.gradient_checkpointing
        kept = wide * shape.hidden * tokens if recomputes else layer
        # The backward pass of a layer begins with the gradients of gate and up; that of the head came before it.
        back = wide * 2 * max(1, shape.experts) * shape.inner * tokens / cut + (layer if recomputes else 0.0)
        found["activations"] = shape.layers * kept + back
        found["logits"] += 4.0 * min(every, KEPT_ELEMENTS[device]) + max(0.0, _head_gradient(shape, wide) - back)
    if sharding.zero_stage == 3:
        found["gathered layers"] = wide * (AHEAD * layer_parameters(shape) + shape.vocabulary * shape.hidden)
    if sharding.zero_stage >= 1 and shape.learns and device == "cuda":
        found["buckets"] = wide * min(BUCKET, shape.learns)
    return found


def _head_gradient(shape: Shape, wide: int) -> float:
    """Of a head that learns, in float32 and then as wide as its weights."""
    return (4 + (wide if wide < 4 else 0)) * shape.vocabulary * shape.hidden if shape.learns == shape.parameters else 0


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
