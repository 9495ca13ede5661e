"""Flags that are understood but not built yet. Whoever builds one removes its line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from openrlhf.config.commands import Command, PPOConfig, defaults, flat

# Flag → why any value but its default is refused.
NOT_BUILT: dict[str, str] = {
    "train_split": "never had an effect: use --dataset_split.",
    "partial_rollout": "is not built yet: leave it out, each sample is then of one version of the weights.",
    "ptx_coef": "never had an effect: leave it out.",
    "actor_init_on_gpu": "never had an effect: leave it out.",
    "perf": "never had an effect: leave it out.",
    "vllm_sync_with_ray": "is not built yet: leave it out and choose --vllm_sync_backend nccl or gloo.",
}

NOT_BUILT_IN: dict[type[Command], dict[str, str]] = {
    PPOConfig: {
        "max_len": "is not built yet for this command: use --prompt_max_len and --generate_max_len.",
    }
}

# Flag, the values that are refused, and why.
NOT_BUILT_VALUES: list[tuple[str, Callable[[Any], bool], str]] = [
    (
        "vllm_num_engines",
        lambda engines: engines == 0,
        "0, which samples without vLLM, is not built yet on a cluster: start at least 1 engine, or give --local.",
    ),
]


def check_built(config: Command) -> None:
    """Raise ValueError for a flag, or a value of one, that is not built yet."""
    default, values = defaults(type(config)), flat(config)
    sentences = {**NOT_BUILT, **NOT_BUILT_IN.get(type(config), {})}
    for name, sentence in sentences.items():
        if name in values and values[name] != default[name]:
            raise ValueError(f"--{name} {sentence}")
    for name, refused, sentence in NOT_BUILT_VALUES:
        if values.get(name) is not None and refused(values[name]):
            raise ValueError(f"--{name} {sentence}")
