"""Batch inference and chat."""

from __future__ import annotations

from openrlhf.config.commands import BatchInferenceConfig, InteractiveChatConfig, defaults, flat

TASKS = ("generate", "generate_vllm", "rm")
POST_PROCESSORS = ("rs", "csft", "iter_dpo")
_OF_RM = ("post_processor", "normalize_reward", "reward_template")
_OF_VLLM = ("tp_size", "max_num_seqs", "enable_prefix_caching")
_OF_GENERATION = ("best_of_n", "iter", "greedy_sampling", "top_p", "temperature", "repetition_penalty", "enable_csft")
# Flags that would change what is written, if the task used them.
IDLE = {
    "generate": (*_OF_RM, *_OF_VLLM),
    "generate_vllm": (*_OF_RM, "zero_stage"),
    "rm": (*_OF_GENERATION, *_OF_VLLM),
}


def task(config: BatchInferenceConfig) -> None:
    name = config.inference.eval_task
    if name not in TASKS:
        given = "must be given" if name is None else f"{name!r} is not known"
        raise ValueError(f"--eval_task {given}: choose generate, generate_vllm or rm.")
    default, values = defaults(BatchInferenceConfig), flat(config)
    if idle := [f"--{flag}" for flag in IDLE[name] if values[flag] != default[flag]]:
        raise ValueError(f"--eval_task {name} makes no use of {', '.join(idle)}: leave out what it does not use.")


def post_processor(config: BatchInferenceConfig) -> None:
    inference = config.inference
    name, template = inference.post_processor, inference.reward_template
    if name is not None and name not in POST_PROCESSORS:
        raise ValueError(f"--post_processor {name!r} is not known: choose rs, csft or iter_dpo.")
    if name != "csft" and (inference.normalize_reward or template is not None):
        raise ValueError("--normalize_reward and --reward_template are of --post_processor csft: leave them out.")
    if template is not None and not ("{input}" in template and "{reward}" in template):
        raise ValueError(f"--reward_template {template!r} must hold {{input}} and {{reward}}, which take their place.")


def condition(config: BatchInferenceConfig | InteractiveChatConfig) -> None:
    sampling = config.sampling
    if not sampling.enable_csft and sampling.csft_prompt != defaults(type(config))["csft_prompt"]:
        raise ValueError("--csft_prompt goes behind the prompts with --enable_csft: give that too.")


def best_of_greedy(config: BatchInferenceConfig) -> None:
    if config.sampling.greedy_sampling and config.generation.best_of_n > 1:
        raise ValueError("--greedy_sampling writes the same answer each time: leave it out, or --best_of_n.")
