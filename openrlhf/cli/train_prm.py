"""Process reward model: ``openrlhf prm``, ``python -m openrlhf.cli.train_prm``, or the module under
``deepspeed --module`` and ``torchrun -m``."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from openrlhf.cli.restarts import run_training
from openrlhf.config.commands import PRMConfig

if TYPE_CHECKING:
    from openrlhf.data.process import StepLabels
    from openrlhf.data.reader import Reader


def main(argv: list[str] | None = None) -> None:
    run_training(run, PRMConfig, argv)


def run(config: PRMConfig) -> None:
    """Solutions with labelled steps → ``fit`` → a Hugging Face folder at ``--save_path``."""
    from openrlhf.cli.supervised import preview, read, save, start, train, train_engine
    from openrlhf.models.adapters import with_adapter
    from openrlhf.models.load import load_causal_lm
    from openrlhf.models.step_model import StepModel
    from openrlhf.objectives.balance import balanced, each_token
    from openrlhf.objectives.process import step_loss
    from openrlhf.training.fit import Task

    model = config.model
    tokenizer = start(config)
    labels = step_labels(config, tokenizer)
    how = labelled_reader(config, tokenizer, labels)
    samples, evaluation = read(config, config.process, how)
    if config.data.preview:
        preview(config, tokenizer, samples, how)
        return
    engine = train_engine(
        config, lambda: with_adapter(StepModel(load_causal_lm(model.pretrain, model).hf), model), len(samples)
    )
    objective = partial(step_loss, tokens=labels.tokens, soft=labels.soft, packed=model.packing_samples)
    task = Task(balanced(objective, model.aux_loss_coef, each_token))
    pulse = train(config, "prm", engine, task, samples, evaluation, tokenizer)
    save(config, engine, tokenizer, pulse)


def reader(config: PRMConfig, tokenizer: Any) -> Reader:
    """How rows become samples of this command."""
    return labelled_reader(config, tokenizer, step_labels(config, tokenizer))


def labelled_reader(config: PRMConfig, tokenizer: Any, labels: StepLabels) -> Reader:
    from openrlhf.data.process import label_name, process_samples
    from openrlhf.data.reader import Reader, untitled
    from openrlhf.data.report import DropReport
    from openrlhf.data.rows import Row
    from openrlhf.types import Sample

    def encode(rows: Iterable[Row], flag: str) -> tuple[list[Sample], DropReport]:
        return process_samples(rows, tokenizer, config.data, config.process, labels, flag)

    return Reader(encode, "--max_len", config.process.max_len, (untitled,), partial(label_name, tokenizer, labels))


def step_labels(config: PRMConfig, tokenizer: Any) -> StepLabels:
    """What the rows of ``--dataset`` have for labels."""
    from openrlhf.data.load import load_rows
    from openrlhf.data.process import read_labels

    process, model = config.process, config.model
    rows = load_rows(
        process.dataset, process.dataset_split, process.dataset_probs, config.data.max_samples, config.train.seed,
        use_ms=model.use_ms,
    )  # fmt: skip
    return read_labels(rows, tokenizer, process)


if __name__ == "__main__":
    main()
