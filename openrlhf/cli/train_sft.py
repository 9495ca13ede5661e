"""Supervised fine-tuning: ``openrlhf sft``, ``python -m openrlhf.cli.train_sft``, or the module under
``deepspeed --module`` and ``torchrun -m``."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from openrlhf.cli.restarts import run_training
from openrlhf.config.commands import SFTConfig

if TYPE_CHECKING:
    from openrlhf.data.reader import Reader


def main(argv: list[str] | None = None) -> None:
    run_training(run, SFTConfig, argv)


def run(config: SFTConfig) -> None:
    """Rows → samples → ``fit`` → a Hugging Face folder at ``--save_path``."""
    from openrlhf.cli.supervised import preview, read, save, start, train, train_engine
    from openrlhf.models.adapters import with_adapter
    from openrlhf.models.load import load_causal_lm
    from openrlhf.objectives.balance import balanced, each_token
    from openrlhf.objectives.language import sft_loss
    from openrlhf.training.fit import Task

    data, dataset, model = config.data, config.dataset, config.model
    tokenizer = start(config)

    how = reader(config, tokenizer)
    samples, evaluation = read(config, dataset, how)
    if data.preview:
        preview(config, tokenizer, samples, how)
        return
    engine = train_engine(config, lambda: with_adapter(load_causal_lm(model.pretrain, model), model), len(samples))
    task = Task(balanced(partial(sft_loss, packed=model.packing_samples), model.aux_loss_coef, each_token))
    pulse = train(config, "sft", engine, task, samples, evaluation, tokenizer)
    save(config, engine, tokenizer, pulse)


def reader(config: SFTConfig, tokenizer: Any) -> Reader:
    """How rows become samples of this command."""
    from openrlhf.data.reader import Reader
    from openrlhf.data.report import DropReport
    from openrlhf.data.rows import Row
    from openrlhf.data.sft import sft_samples
    from openrlhf.types import Sample

    def encode(rows: Iterable[Row], flag: str) -> tuple[list[Sample], DropReport]:
        return sft_samples(rows, tokenizer, config.data, config.dataset, flag)

    return Reader(encode, "--max_len", config.dataset.max_len)


if __name__ == "__main__":
    main()
