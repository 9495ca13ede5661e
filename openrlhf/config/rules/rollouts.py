"""What ends a response, which samples a rollout keeps, and how far it may run ahead."""

from __future__ import annotations

from openrlhf.config.commands import PPOConfig, defaults


def stop_strings(config: PPOConfig) -> None:
    given = config.rollout.stop_strings or ()
    if "" in given:
        raise ValueError(
            "--stop_strings holds an empty text, with which every response would end at once: leave it out."
        )
    if wrong := [text for text in given if "\\n" in text]:
        raise ValueError(
            f"--stop_strings {wrong[0]!r} holds a backslash and an n, not a new line: write for example $'\\nUser:'."
        )


def filtering(config: PPOConfig) -> None:
    rollout = config.rollout
    if not rollout.dynamic_filtering:
        if rollout.dynamic_filtering_reward_range != defaults(PPOConfig)["dynamic_filtering_reward_range"]:
            raise ValueError("--dynamic_filtering_reward_range says what to keep: it needs --dynamic_filtering.")
        return
    if rollout.n_samples_per_prompt == 1:
        raise ValueError(
            "--dynamic_filtering looks at the scores of all responses to a prompt: --n_samples_per_prompt must be "
            "above 1."
        )
    if config.reward.remote_rm_url is None and config.rollout.agent_func_path is None:
        raise ValueError(
            "--dynamic_filtering keeps prompts by the scores of a function or an agent: it needs --remote_rm_url or "
            "--agent_func_path."
        )
    if rollout.async_train and rollout.async_queue_size > 1:
        raise ValueError(
            f"--async_queue_size {rollout.async_queue_size}: with --dynamic_filtering a rollout batch takes prompts "
            "until it is full, and the next one begins behind them: choose --async_queue_size 1."
        )


def asynchronous(config: PPOConfig) -> None:
    rollout, default = config.rollout, defaults(PPOConfig)
    if not rollout.async_train:
        for name in ("async_queue_size", "max_staleness", "partial_rollout"):
            if vars(rollout)[name] != default[name]:
                raise ValueError(f"--{name} is about rollouts that run ahead: it needs --async_train.")
        return
    most, ahead = rollout.max_staleness, rollout.async_queue_size
    if most is not None and most >= ahead:
        raise ValueError(
            f"--max_staleness {most} would never act: with --async_queue_size {ahead} no sample is more than {ahead} "
            "updates old: leave it out."
        )
    if most is not None and not rollout.partial_rollout:
        raise ValueError(
            f"--async_queue_size {ahead} makes samples {ahead} updates old and --max_staleness {most} would leave all "
            f"of them out: choose --async_queue_size {most} instead, or give --partial_rollout."
        )
    if rollout.partial_rollout and (ahead == 0 or config.placement.local):
        other = "--local" if config.placement.local else "--async_queue_size 0"
        raise ValueError(
            f"--partial_rollout lets new weights in while the engines generate, and with {other} they do not generate "
            "then: leave one out."
        )
    for flag, given in (
        ("colocate_all_models", config.placement.colocate_all_models),
        ("vllm_enable_sleep", config.vllm.vllm_enable_sleep),
    ):
        if given:
            raise ValueError(
                f"--async_train samples while the models learn, and --{flag} lets them take turns on the same GPUs: "
                "leave one out."
            )
