"""Flags that are understood but not built yet. Whoever builds one removes its line here."""

from __future__ import annotations

from openrlhf.config.commands import Command, PPOConfig, defaults, flat

# Flag → why any value but its default is refused.
NOT_BUILT: dict[str, str] = {
    "train_split": "never had an effect: use --dataset_split.",
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


def check_built(config: Command) -> None:
    """Raise ValueError for a flag that is not built yet."""
    default, values = defaults(type(config)), flat(config)
    sentences = {**NOT_BUILT, **NOT_BUILT_IN.get(type(config), {})}
    for name, sentence in sentences.items():
        if name in values and values[name] != default[name]:
            raise ValueError(f"--{name} {sentence}")
