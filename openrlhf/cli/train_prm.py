"""Process reward model: ``openrlhf prm``, ``python -m openrlhf.cli.train_prm``, or the module under
``deepspeed --module`` and ``torchrun -m``."""

from __future__ import annotations

from functools import partial

from openrlhf.cli.run_command import run_command
from openrlhf.config.commands import PRMConfig
from openrlhf.config.parse import parse


def main(argv: list[str] | None = None) -> None:
    run_command(run, parse(PRMConfig, argv))


def run(config: PRMConfig) -> None:
    """Solutions with labelled steps → ``fit`` → a Hugging Face folder at ``--save_path``."""
    from openrlhf.backends.choose import choose_train_engine
    from openrlhf.cli.process import prepare_process
    from openrlhf.cli.supervised import save, say_what_was_dropped, train
    from openrlhf.data.load import load_rows
    from openrlhf.data.process import process_samples, read_labels
    from openrlhf.models.load import load_causal_lm, load_tokenizer
    from openrlhf.models.step_model import StepModel
    from openrlhf.objectives.process import step_loss
    from openrlhf.training.fit import Task, total_steps
    from openrlhf.types import Sample

    prepare_process(config.train)
    data, process, model = config.data, config.process, config.model
    tokenizer = load_tokenizer(model.pretrain, model)
    seed, most = config.train.seed, data.max_samples
    rows = load_rows(process.dataset, process.dataset_split, process.dataset_probs, most, seed)
    labels = read_labels(rows, tokenizer, process)
    samples, report = process_samples(rows, tokenizer, data, process, labels)
    say_what_was_dropped(report, "--dataset")
    evaluation: list[Sample] = []
    if data.eval_dataset:
        held_out = load_rows(data.eval_dataset, data.eval_split, None, most, seed, "--eval_dataset")
        evaluation, report = process_samples(held_out, tokenizer, data, process, labels, "--eval_dataset")
        say_what_was_dropped(report, "--eval_dataset")
    engine = choose_train_engine(
        lambda: StepModel(load_causal_lm(model.pretrain, model).hf),
        model,
        config.optim,
        config.train,
        config.deepspeed,
        config.fit.learning_rate,
        total_steps(len(samples), config.train),
    )
    task = Task(partial(step_loss, tokens=labels.tokens, soft=labels.soft, packed=model.packing_samples))
    train(config, "prm", engine, task, samples, evaluation, tokenizer)
    save(config, engine, tokenizer)


if __name__ == "__main__":
    main()
