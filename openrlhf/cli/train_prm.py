"""Process reward model: ``openrlhf prm``, ``python -m openrlhf.cli.train_prm``, or the module under
``deepspeed --module`` and ``torchrun -m``."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from openrlhf.cli.run_command import run_command
from openrlhf.config.commands import PRMConfig
from openrlhf.config.parse import parse


def main(argv: list[str] | None = None) -> None:
    run_command(run, parse(PRMConfig, argv))


def run(config: PRMConfig) -> None:
    """Solutions with labelled steps → ``fit`` → a Hugging Face folder at ``--save_path``."""
    from openrlhf.cli.supervised import preview, read, save, start, train, train_engine
    from openrlhf.data.load import load_rows
    from openrlhf.data.process import label_name, process_samples, read_labels
    from openrlhf.data.report import DropReport
    from openrlhf.data.rows import Row
    from openrlhf.models.adapters import with_adapter
    from openrlhf.models.load import load_causal_lm, load_tokenizer
    from openrlhf.models.step_model import StepModel
    from openrlhf.objectives.balance import balanced, each_token
    from openrlhf.objectives.process import step_loss
    from openrlhf.training.fit import Task
    from openrlhf.types import Sample

    start(config)
    data, process, model = config.data, config.process, config.model
    tokenizer = load_tokenizer(model.pretrain, model)
    rows = load_rows(
        process.dataset, process.dataset_split, process.dataset_probs, data.max_samples, config.train.seed,
        use_ms=model.use_ms,
    )  # fmt: skip
    labels = read_labels(rows, tokenizer, process)

    def encode(rows: Iterable[Row], flag: str) -> tuple[list[Sample], DropReport]:
        return process_samples(rows, tokenizer, data, process, labels, flag)

    samples, evaluation = read(config, process, encode)
    if data.preview:
        preview(config, tokenizer, samples, process.max_len, note=partial(label_name, tokenizer, labels))
        return
    engine = train_engine(
        config, lambda: with_adapter(StepModel(load_causal_lm(model.pretrain, model).hf), model), len(samples)
    )
    objective = partial(step_loss, tokens=labels.tokens, soft=labels.soft, packed=model.packing_samples)
    task = Task(balanced(objective, model.aux_loss_coef, each_token))
    train(config, "prm", engine, task, samples, evaluation, tokenizer)
    save(config, engine, tokenizer)


if __name__ == "__main__":
    main()
