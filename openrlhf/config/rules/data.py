"""Which rows are read, with what share, column and template."""

from __future__ import annotations

import math

from openrlhf.config.commands import (
    DEFAULTS,
    BatchInferenceConfig,
    DPOConfig,
    InteractiveChatConfig,
    KDConfig,
    KTOConfig,
    PPOConfig,
    PRMConfig,
    RMConfig,
    SFTConfig,
    TrainCommand,
)


def template(config: TrainCommand | BatchInferenceConfig | InteractiveChatConfig) -> None:
    text, chat = config.data.input_template, config.data.apply_chat_template
    if text is None:
        return
    if "\\n" in text:
        raise ValueError(
            "--input_template holds a backslash and an n, not a new line: write for example $'User: {}\\nAssistant: '."
        )
    if "{}" not in text:
        raise ValueError(f"--input_template {text!r} has no {{}} to put the prompt in.")
    if chat and text != DEFAULTS[type(config)].get("input_template"):
        raise ValueError("--apply_chat_template and --input_template both shape the prompt: leave one out.")


def shares(names: str, probs: str | None, flag: str) -> None:
    """Raise ValueError unless ``--{flag}_probs`` gives each part of ``--{flag}`` a share, and the shares sum to 1."""
    if probs is None:
        return
    parts = names.count(",") + 1
    try:
        numbers = [float(text) for text in probs.split(",")]
    except ValueError:
        raise ValueError(f"--{flag}_probs {probs!r} must be numbers separated by commas, as in 0.3,0.7.") from None
    if len(numbers) != parts:
        raise ValueError(f"--{flag}_probs has {len(numbers)} shares but --{flag} has {parts} parts: give one for each.")
    if not (all(x > 0 for x in numbers) and math.isclose(sum(numbers), 1, abs_tol=1e-6)):
        raise ValueError(f"--{flag}_probs {probs} must be above 0 and sum to 1.")


def dataset_shares(config: SFTConfig | KDConfig | BatchInferenceConfig) -> None:
    shares(config.dataset.dataset, config.dataset.dataset_probs, "dataset")


def pair_shares(config: RMConfig | DPOConfig) -> None:
    shares(config.pairs.dataset, config.pairs.dataset_probs, "dataset")


def unpaired_shares(config: KTOConfig) -> None:
    shares(config.unpaired.dataset, config.unpaired.dataset_probs, "dataset")


def process_shares(config: PRMConfig) -> None:
    shares(config.process.dataset, config.process.dataset_probs, "dataset")


def prompt_shares(config: PPOConfig) -> None:
    shares(config.prompts.prompt_data, config.prompts.prompt_data_probs, "prompt_data")


def pair_template(config: RMConfig | DPOConfig) -> None:
    if config.data.input_template is not None and config.pairs.prompt_key is None:
        raise ValueError("--input_template goes around the prompt: name its column with --prompt_key.")


def answers(config: SFTConfig | KDConfig) -> None:
    if not (config.dataset.output_key or config.data.apply_chat_template or config.dataset.pretrain_mode):
        raise ValueError(
            "--output_key must name the column of the answer, unless --apply_chat_template takes it from a "
            "conversation or --pretrain_mode learns the whole text."
        )


def unpaired_answers(config: KTOConfig) -> None:
    if not (config.unpaired.output_key or config.data.apply_chat_template):
        raise ValueError(
            "--output_key must name the column of the answer, unless --apply_chat_template takes it from a "
            "conversation."
        )


def multiturn(config: SFTConfig) -> None:
    if config.dataset.multiturn and not config.data.apply_chat_template:
        raise ValueError("--multiturn finds the turns with the chat template: give --apply_chat_template too.")


def pretrain_mode(config: SFTConfig | KDConfig) -> None:
    extra = {
        "output_key": config.dataset.output_key not in (None, DEFAULTS[type(config)].get("output_key")),
        "multiturn": config.dataset.multiturn,
        "apply_chat_template": config.data.apply_chat_template,
    }
    if config.dataset.pretrain_mode and any(extra.values()):
        raise ValueError(
            f"--pretrain_mode learns the text of --input_key as it is: leave out "
            f"{', '.join(f'--{name}' for name, given in extra.items() if given)}."
        )


def reward_tokens(config: PRMConfig) -> None:
    tokens = config.process.reward_tokens
    if tokens is not None and (len(tokens) < 2 or len(set(tokens)) < len(tokens)):
        raise ValueError(
            f"--reward_tokens {' '.join(tokens)} must be two or more different tokens, as in --reward_tokens + -."
        )
