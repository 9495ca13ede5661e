"""Losses that compare answers: reward models, DPO, KTO."""

from __future__ import annotations

from openrlhf.config.commands import DPOConfig, KTOConfig, RMConfig, flat
from openrlhf.config.derived import reference_source, starts_from


def margin(config: RMConfig) -> None:
    training = config.reward_training
    if training.margin_loss and training.loss != "sigmoid":
        raise ValueError(f"--loss {training.loss} has no margin: leave out --margin_loss, or --loss.")


def smoothing(config: DPOConfig) -> None:
    preference = config.preference
    if preference.ipo and preference.label_smoothing != 0:
        raise ValueError("--ipo has no --label_smoothing: leave one of them out.")


def reference_offload(config: DPOConfig | KTOConfig) -> None:
    source = reference_source(config) if isinstance(config, DPOConfig) else config.model.pretrain
    if flat(config)["ref_offload"] and starts_from(config.model, source):
        raise ValueError(
            "--ref_offload: with --lora_rank the reference is the model without its adapter and takes no memory: "
            "leave --ref_offload out."
        )


def mismatched(config: KTOConfig) -> None:
    if config.train.train_batch_size < 2:
        raise ValueError("--train_batch_size 1 leaves KTO one answer to estimate its KL from: make it at least 2.")
