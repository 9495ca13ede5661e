"""Supervised fine-tuning: ``openrlhf sft``, ``python -m openrlhf.cli.train_sft``, or the module under
``deepspeed --module`` and ``torchrun -m``."""

from __future__ import annotations

from functools import partial

from openrlhf.cli.run_command import run_command
from openrlhf.config.commands import SFTConfig
from openrlhf.config.parse import parse


def main(argv: list[str] | None = None) -> None:
    run_command(run, parse(SFTConfig, argv))


def run(config: SFTConfig) -> None:
    """Rows → samples → ``fit`` → a Hugging Face folder at ``--save_path``."""
    from openrlhf.backends.choose import choose_train_engine
    from openrlhf.cli.process import prepare_process
    from openrlhf.cli.supervised import save, say_what_was_dropped, train
    from openrlhf.data.load import load_rows
    from openrlhf.data.sft import sft_samples
    from openrlhf.models.load import load_causal_lm, load_tokenizer
    from openrlhf.objectives.language import sft_loss
    from openrlhf.training.fit import Task, total_steps
    from openrlhf.types import Sample

    prepare_process(config.train)
    data, dataset, model = config.data, config.dataset, config.model
    tokenizer = load_tokenizer(model.pretrain, model)

    def read(names: str, split: str, probs: str | None, flag: str) -> list[Sample]:
        rows = load_rows(names, split, probs, data.max_samples, config.train.seed, flag)
        samples, report = sft_samples(rows, tokenizer, data, dataset, flag)
        say_what_was_dropped(report, flag)
        return samples

    samples = read(dataset.dataset, dataset.dataset_split, dataset.dataset_probs, "--dataset")
    evaluation = read(data.eval_dataset, data.eval_split, None, "--eval_dataset") if data.eval_dataset else []
    engine = choose_train_engine(
        lambda: load_causal_lm(model.pretrain, model),
        model,
        config.optim,
        config.train,
        config.deepspeed,
        config.fit.learning_rate,
        total_steps(len(samples), config.train),
    )
    task = Task(partial(sft_loss, packed=model.packing_samples))
    train(config, "sft", engine, task, samples, evaluation, tokenizer)
    save(config, engine, tokenizer)


if __name__ == "__main__":
    main()
