"""Supervised fine-tuning: `openrlhf sft`, `python -m openrlhf.cli.train_sft`, or under `deepspeed --module` / `torchrun -m`."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from openrlhf.config.commands import SFTConfig
from openrlhf.config.parse import flat, parse, write_yaml


def main(argv: list[str] | None = None) -> None:
    run(parse(SFTConfig, argv))


def run(config: SFTConfig) -> None:
    from openrlhf.cli.data import evaluation_rows, training_rows
    from openrlhf.cli.engine import train_engine
    from openrlhf.data.sft import sft_samples
    from openrlhf.models.load import load_causal_lm, load_tokenizer
    from openrlhf.objectives.language import sft_loss
    from openrlhf.training.fit import fit, total_steps
    from openrlhf.training.log import RunLog

    tokenizer = load_tokenizer(config.model.pretrain, config.model)
    samples, report = sft_samples(training_rows(config), tokenizer, config.data, config.dataset)
    ...


if __name__ == "__main__":
    main()
