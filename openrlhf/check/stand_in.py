"""Rows read where the tokenizer of ``--pretrain`` is not to be had: by the bytes of their texts. Columns, templates,
labels and empty texts are then known, lengths in tokens are not."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from openrlhf.config.commands import PPOConfig, PRMConfig, TrainCommand, build, flat
from openrlhf.models.tiny import build_tokenizer

NO_LIMIT = 2**40  # bytes


def unlimited(config: TrainCommand) -> TrainCommand:
    """The same run for texts of any length: a limit in tokens says nothing of bytes."""
    name = "prompt_max_len" if isinstance(config, PPOConfig) else "max_len"
    found: TrainCommand = build(type(config), {**flat(config), name: NO_LIMIT})  # type: ignore[type-var]
    return found


def byte_tokenizer(config: TrainCommand) -> Any:
    """A token a byte, and one for each marker of ``--placeholder_token`` and ``--reward_tokens``.

    Raises ValueError for step labels that may be any token, which bytes cannot stand for.
    """
    with TemporaryDirectory() as folder:
        tokenizer = build_tokenizer(Path(folder))
    if config.model.tokenizer_chat_template:
        tokenizer.chat_template = config.model.tokenizer_chat_template
    if isinstance(config, PRMConfig):
        if config.process.reward_tokens is None:
            raise ValueError(
                "--dataset: its rows were not read, since without --reward_tokens a label may be any token of "
                "--pretrain, which was not found"
            )
        tokenizer.add_tokens([config.process.placeholder_token, *config.process.reward_tokens])
    return tokenizer
