"""Knowledge distillation: ``openrlhf kd``, ``python -m openrlhf.cli.train_kd``, or the module under
``deepspeed --module`` and ``torchrun -m``."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from openrlhf.cli.restarts import run_training
from openrlhf.config.commands import KDConfig

if TYPE_CHECKING:
    from openrlhf.data.reader import Reader


def main(argv: list[str] | None = None) -> None:
    run_training(run, KDConfig, argv)


def run(config: KDConfig) -> None:
    """Rows → samples → ``fit`` against a frozen teacher → a Hugging Face folder at ``--save_path``.

    Raises ValueError when the teacher's tokenizer has another vocabulary than the student's.
    """
    from openrlhf.backends.choose import choose_forward_engine
    from openrlhf.cli.supervised import preview, read, save, start, train, train_engine
    from openrlhf.models.adapters import with_adapter
    from openrlhf.models.load import load_causal_lm
    from openrlhf.models.teacher import Teacher
    from openrlhf.models.vocabulary import check_same_tokens
    from openrlhf.objectives.balance import balanced, each_token
    from openrlhf.objectives.distillation import kd_loss
    from openrlhf.training.fit import Task

    data, dataset, model, distillation = config.data, config.dataset, config.model, config.distillation
    tokenizer = start(config)
    vocabulary = tokenizer.get_vocab()
    check_same_tokens(distillation.teacher_model, "--teacher_model", tokenizer, model)

    how = reader(config, tokenizer)
    samples, evaluation = read(config, dataset, how)
    if data.preview:
        preview(config, tokenizer, samples, how)
        return
    engine = train_engine(config, lambda: with_adapter(load_causal_lm(model.pretrain, model), model), len(samples))
    teacher = choose_forward_engine(
        lambda: Teacher(
            load_causal_lm(distillation.teacher_model, model, "--teacher_model"), max(vocabulary.values()) + 1
        ),
        model,
        config.deepspeed,
        distillation.teacher_offload,
        "--teacher_offload",
    )
    objective = partial(kd_loss, teacher=teacher.model, kd_coef=distillation.kd_coef, packed=model.packing_samples)
    task = Task(balanced(objective, model.aux_loss_coef, each_token))
    pulse = train(config, "kd", engine, task, samples, evaluation, tokenizer)
    save(config, engine, tokenizer, pulse)


def reader(config: KDConfig, tokenizer: Any) -> Reader:
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
