"""Knowledge distillation: ``openrlhf kd``, ``python -m openrlhf.cli.train_kd``, or the module under
``deepspeed --module`` and ``torchrun -m``."""

from __future__ import annotations

from functools import partial

from openrlhf.cli.run_command import run_command
from openrlhf.config.commands import KDConfig
from openrlhf.config.parse import parse


def main(argv: list[str] | None = None) -> None:
    run_command(run, parse(KDConfig, argv))


def run(config: KDConfig) -> None:
    """Rows → samples → ``fit`` against a frozen teacher → a Hugging Face folder at ``--save_path``.

    Raises ValueError when the teacher's tokenizer has another vocabulary than the student's.
    """
    from openrlhf.backends.choose import choose_forward_engine, choose_train_engine
    from openrlhf.cli.process import prepare_process
    from openrlhf.cli.supervised import save, say_what_was_dropped, train
    from openrlhf.data.load import load_rows
    from openrlhf.data.sft import sft_samples
    from openrlhf.models.load import load_causal_lm, load_tokenizer
    from openrlhf.models.teacher import Teacher
    from openrlhf.objectives.distillation import kd_loss
    from openrlhf.training.fit import Task, total_steps
    from openrlhf.types import Sample

    prepare_process(config.train)
    data, dataset, model, distillation = config.data, config.dataset, config.model, config.distillation
    tokenizer = load_tokenizer(model.pretrain, model)
    vocabulary = tokenizer.get_vocab()
    if load_tokenizer(distillation.teacher_model, model, "--teacher_model").get_vocab() != vocabulary:
        raise ValueError(
            f"--teacher_model {distillation.teacher_model}: its tokenizer has another vocabulary than that of "
            f"--pretrain {model.pretrain}, so it speaks of other tokens; choose a teacher of the same family"
        )

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
    teacher = choose_forward_engine(
        lambda: Teacher(
            load_causal_lm(distillation.teacher_model, model, "--teacher_model"), max(vocabulary.values()) + 1
        ),
        model,
        config.deepspeed.zero_stage,
        distillation.teacher_offload,
        "--teacher_offload",
    )
    objective = partial(kd_loss, teacher=teacher.model, kd_coef=distillation.kd_coef, packed=model.packing_samples)
    train(config, "kd", engine, Task(objective), samples, evaluation, tokenizer)
    save(config, engine, tokenizer)


if __name__ == "__main__":
    main()
