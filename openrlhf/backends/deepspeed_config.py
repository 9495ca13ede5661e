"""Flags → the dictionary that ``deepspeed.initialize`` reads. Pure: imports no DeepSpeed.

What is not named here keeps DeepSpeed's default. ZeRO: Rajbhandari et al. 2020, arXiv:1910.02054; ``zpg`` is the
secondary partition of ZeRO++ (Wang et al. 2023, arXiv:2306.10209).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.cpp_extension import CUDA_HOME

from openrlhf.config.groups import DeepSpeedConfig, ModelConfig, OptimConfig, TrainConfig


def train_config(
    model: ModelConfig, optim: OptimConfig, train: TrainConfig, deepspeed: DeepSpeedConfig
) -> dict[str, Any]:
    """The configuration of a model in training.

    The loop decides when a mini-batch is complete, so DeepSpeed counts one gradient accumulation step. What
    ``clips_by_hand`` is clipped by the engine, not here.

    Raises ValueError for flags that DeepSpeed would drop in silence or refuse later.
    """
    check_stage(model, deepspeed)
    zero: dict[str, Any] = {
        "stage": deepspeed.zero_stage,
        "overlap_comm": deepspeed.overlap_comm,
        "zero_hpz_partition_size": deepspeed.zpg,
        "offload_optimizer": _offload(deepspeed.adam_offload),
    }
    config: dict[str, Any] = {
        **_common(model.bf16, zero, train.micro_train_batch_size),
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW needs no compiler, on the CPU neither
        "gradient_clipping": 0.0 if clips_by_hand(model, deepspeed) else optim.max_norm,
    }
    if deepspeed.deepcompile:
        config["compile"] = {"deepcompile": True}
    if deepspeed.grad_accum_dtype is not None:
        config["data_types"] = {"grad_accum_dtype": deepspeed.grad_accum_dtype}
    return config


def frozen_config(bf16: bool, zero_stage: int, offload: bool) -> dict[str, Any]:
    """The configuration of a model that only runs forward (reference, reward model).

    Its weights are partitioned where the trained model's are (stage 3), else whole on every rank. With ``offload``
    they are partitioned and wait in host memory.
    """
    stage = 3 if zero_stage == 3 or offload else 0
    return _common(bf16, {"stage": stage, "offload_param": _offload(offload)}, micro_batch_size=1)


def clips_by_hand(model: ModelConfig, deepspeed: DeepSpeedConfig) -> bool:
    """Whether the engine does it: stage 0 in float32 runs the bare optimizer, which knows no norm, and in bfloat16 with
    tensor parallelism one that counts the first rank's part of the gradient only."""
    return deepspeed.zero_stage == 0 and (not model.bf16 or deepspeed.ds_tensor_parallel_size > 1)


def check_stage(model: ModelConfig, deepspeed: DeepSpeedConfig) -> None:
    """Raise ValueError where a flag asks for what this ZeRO stage has not."""
    stage = deepspeed.zero_stage
    if stage not in (0, 1, 2, 3):
        raise ValueError(f"--zero_stage is {stage}: DeepSpeed has the stages 0, 1, 2 and 3")
    if deepspeed.adam_offload and stage == 0:
        raise ValueError("--adam_offload moves the partitioned optimizer: it needs --zero_stage 1, 2 or 3")
    if deepspeed.zpg > 1 and stage != 3:
        raise ValueError(f"--zpg {deepspeed.zpg} keeps a second partition of the weights: it needs --zero_stage 3")
    if deepspeed.grad_accum_dtype is not None and stage == 0:
        raise ValueError("--grad_accum_dtype needs --zero_stage 1, 2 or 3: stage 0 adds up in the model's own dtype")
    if deepspeed.deepcompile:
        check_compile(model, deepspeed)


def check_compile(model: ModelConfig, deepspeed: DeepSpeedConfig) -> None:
    """Raise ValueError where DeepCompile cannot work: it schedules ZeRO's communication, in CUDA code of its own."""
    if deepspeed.zero_stage == 0:
        raise ValueError("--deepcompile schedules the communication of ZeRO: it needs --zero_stage 1, 2 or 3")
    if model.ring_attn_size > 1 or deepspeed.ds_tensor_parallel_size > 1:
        flag = "--ring_attn_size" if model.ring_attn_size > 1 else "--ds_tensor_parallel_size"
        raise ValueError(f"--deepcompile does not know the communication of {flag}: leave one of them out")
    if not torch.cuda.is_available() or CUDA_HOME is None:
        raise ValueError(
            "--deepcompile builds CUDA code: it needs an NVIDIA GPU and the CUDA toolkit (CUDA_HOME names its folder); "
            "leave it out to run the model uncompiled"
        )


def _common(bf16: bool, zero: dict[str, Any], micro_batch_size: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": 1,
        "bf16": {"enabled": bf16},
        "zero_optimization": zero,
        "steps_per_print": None,
    }


def _offload(to_host: bool) -> dict[str, Any]:
    return {"device": "cpu", "pin_memory": True} if to_host else {"device": "none"}
