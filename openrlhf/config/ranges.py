"""Which values a number may have."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from openrlhf.config.commands import Command, flat


@dataclass(frozen=True)
class Range:
    """The values for which ``holds``, and how to say so after "must be". NaN lies in none."""

    says: str
    holds: Callable[[Any], bool]
    flags: tuple[str, ...]


RANGES = (
    Range(
        "at least 1",
        lambda x: x >= 1,
        (
            *("train_batch_size", "micro_train_batch_size", "max_epochs", "logging_steps", "max_samples", "max_len"),
            *("prompt_max_len", "generate_max_len", "rollout_batch_size", "micro_rollout_batch_size", "num_episodes"),
            *("n_samples_per_prompt", "eval_n_samples_per_prompt", "max_ckpt_num", "max_ckpt_mem", "kl_horizon", "zpg"),
            *("actor_num_nodes", "actor_num_gpus_per_node", "critic_num_nodes", "critic_num_gpus_per_node"),
            *("ref_num_nodes", "ref_num_gpus_per_node", "reward_num_nodes", "reward_num_gpus_per_node"),
            *("vllm_tensor_parallel_size", "ds_tensor_parallel_size"),
            *("ring_attn_size", "ring_head_stride", "lora_alpha", "batch_size", "overlong_buffer_len"),
            *("train_max_tokens_per_gpu", "rollout_max_tokens_per_gpu"),
            *("micro_batch_size", "max_new_tokens", "best_of_n", "tp_size", "max_num_seqs", "max_skipped_steps"),
        ),
    ),
    Range(
        "at least 0",
        lambda x: x >= 0,
        (
            *("seed", "preview", "l2", "max_norm", "learning_rate", "actor_learning_rate", "critic_learning_rate"),
            *("init_kl_coef", "eval_temperature", "aux_loss_coef", "lora_rank", "nll_loss_coef"),
            *("desirable_loss_weight", "undesirable_loss_weight", "iter", "overlong_penalty_factor"),
            *("async_queue_size", "max_staleness", "max_restarts", "vllm_num_engines"),
        ),
    ),
    Range(
        "above 0",
        lambda x: x > 0,
        (
            "temperature",
            "repetition_penalty",
            "eps_clip",
            "value_clip",
            "kl_target",
            "beta",
            "reward_timeout",
            "deadline",
            "samples_max_mb",
        ),
    ),
    Range("above 0 and at most 1", lambda x: 0 < x <= 1, ("top_p", "vllm_gpu_memory_utilization")),
    Range(
        "between 0 and 1",
        lambda x: 0 <= x <= 1,
        ("gamma", "lambd", "lr_warmup_ratio", "lora_dropout", "ema_beta", "kd_coef"),
    ),
    Range("at least 0 and below 0.5", lambda x: 0 <= x < 0.5, ("label_smoothing",)),
    Range("above 1", lambda x: x > 1, ("dual_clip",)),
    Range("at least -1", lambda x: x >= -1, ("samples_per_step",)),
    Range("-1 or at least 1", lambda x: x == -1 or x >= 1, ("eval_steps", "save_steps", "freezing_actor_steps")),
    Range("between 0 and 65535", lambda x: 0 <= x <= 65535, ("port",)),
    Range("0, 1, 2 or 3", lambda x: x in (0, 1, 2, 3), ("zero_stage",)),
    Range("two numbers of at least 0 and below 1", lambda pair: all(0 <= x < 1 for x in pair), ("adam_betas",)),
    Range("finite numbers", lambda numbers: all(map(math.isfinite, numbers)), ("reward_weights",)),
    Range("two numbers above 0", lambda pair: all(x > 0 for x in pair), ("eps_clip_low_high",)),
    Range(
        "two numbers of at least 0, the lower one first",
        lambda pair: 0 <= pair[0] < pair[1],
        ("vllm_is_truncated_threshold",),
    ),
    Range(
        "two numbers, the lower one first",
        lambda pair: pair[0] < pair[1],
        ("reward_clip_range", "dynamic_filtering_reward_range"),
    ),
)


def check_ranges(config: Command) -> None:
    """Raise ValueError for a number that is out of its range."""
    values = flat(config)
    for allowed in RANGES:
        for name in allowed.flags:
            value = values.get(name)
            if value is not None and not allowed.holds(value):
                raise ValueError(f"--{name} is {_shown(value)}, but it must be {allowed.says}.")


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
