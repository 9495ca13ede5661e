"""What decides the numbers of a run: a checkpoint of a run where any of it differs cannot be gone on from exactly."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from openrlhf.config.commands import Command, flat
from openrlhf.config.groups import (
    CheckpointConfig,
    DeepSpeedConfig,
    LogConfig,
    PlacementConfig,
    SampleConfig,
    VLLMConfig,
)

# Where it runs, what it writes, and what is arithmetic of the same numbers. Which rows there are is compared by the
# rows themselves, so that a file may move.
FREE_GROUPS = (CheckpointConfig, LogConfig, SampleConfig, DeepSpeedConfig, PlacementConfig, VLLMConfig)
FREE_FLAGS = frozenset(
    {
        *("micro_train_batch_size", "micro_rollout_batch_size", "local_rank", "full_determinism"),
        *("use_dynamic_batch", "train_max_tokens_per_gpu", "rollout_max_tokens_per_gpu", "max_skipped_steps"),
        *("gradient_checkpointing", "gradient_checkpointing_use_reentrant", "packing_samples", "flash_attn"),
        *("use_liger_kernel", "ring_attn_size", "ring_head_stride", "disable_fast_tokenizer", "trust_remote_code"),
        *("ref_offload", "teacher_offload", "ref_reward_offload", "save_value_network", "use_ms"),
        *("strict_data", "preview", "reward_timeout", "on_reward_failure"),
        *("dataset", "dataset_probs", "dataset_split", "train_split", "prompt_data", "prompt_data_probs"),
        *("prompt_split", "max_samples", "eval_dataset", "eval_split", "eval_temperature"),
        *("eval_n_samples_per_prompt", "input_key", "output_key", "label_key", "prompt_key", "chosen_key"),
        "rejected_key",
    }
)
# Where programs and servers are may change, but not whether there are any.
PLACES = frozenset({"remote_rm_url", "agent_func_path"})


def decisive(config: Command) -> dict[str, Any]:
    """The flags that must be the same to go on from a checkpoint, and their values as JSON has them."""
    free = FREE_FLAGS | {f.name for group in FREE_GROUPS for f in fields(group)}
    values = {name: value for name, value in flat(config).items() if name not in free}
    values |= {name: "given" for name in PLACES if values.get(name) is not None}
    return {
        "command": type(config).__name__.removesuffix("Config"),
        **{f"--{name}": list(value) if isinstance(value, tuple) else value for name, value in values.items()},
    }
