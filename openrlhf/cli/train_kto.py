"""KTO from single labelled answers: ``openrlhf kto``, ``python -m openrlhf.cli.train_kto``, or the module under
``deepspeed --module`` and ``torchrun -m``."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from openrlhf.cli.restarts import run_training
from openrlhf.config.commands import KTOConfig

if TYPE_CHECKING:
    from openrlhf.data.reader import Reader


def main(argv: list[str] | None = None) -> None:
    run_training(run, KTOConfig, argv)


def run(config: KTOConfig) -> None:
    """Labelled answers → ``fit`` against the frozen start of the model → a Hugging Face folder at ``--save_path``."""
    from openrlhf.backends.choose import choose_reference_engine
    from openrlhf.cli.supervised import preview, read, save, start, train, train_engine
    from openrlhf.models.adapters import with_adapter
    from openrlhf.models.load import load_causal_lm
    from openrlhf.objectives.balance import balanced, each_labelled
    from openrlhf.objectives.unpaired import kto_loss
    from openrlhf.training.baseline import with_kl_baseline
    from openrlhf.training.fit import Task
    from openrlhf.training.micro_batches import train_size
    from openrlhf.training.update import pair_mean
    from openrlhf.types import Batch

    data, unpaired, model, kto = config.data, config.unpaired, config.model, config.kto
    tokenizer = start(config)

    how = reader(config, tokenizer)
    samples, evaluation = read(config, unpaired, how)
    if data.preview:
        preview(config, tokenizer, samples, how)
        return
    engine = train_engine(config, lambda: with_adapter(load_causal_lm(model.pretrain, model), model), len(samples) // 2)
    reference = choose_reference_engine(engine, model.pretrain, model, config.deepspeed, kto.ref_offload)

    def with_reference(batch: Batch) -> Batch:
        return with_kl_baseline(batch, engine, reference, train_size(config.train, model), model.packing_samples)

    objective = partial(
        kto_loss,
        beta=kto.beta,
        desirable_weight=kto.desirable_loss_weight,
        undesirable_weight=kto.undesirable_loss_weight,
        packed=model.packing_samples,
    )
    task = Task(balanced(objective, model.aux_loss_coef, each_labelled), pair_mean, rows=2, prepare=with_reference)
    pulse = train(config, "kto", engine, task, samples, evaluation, tokenizer)
    save(config, engine, tokenizer, pulse)


def reader(config: KTOConfig, tokenizer: Any) -> Reader:
    """How rows become samples of this command."""
    from openrlhf.data.reader import Reader
    from openrlhf.data.report import DropReport
    from openrlhf.data.rows import Row
    from openrlhf.data.unpaired import TITLES, unpaired_samples
    from openrlhf.types import Sample

    def encode(rows: Iterable[Row], flag: str) -> tuple[list[Sample], DropReport]:
        answers, report = unpaired_samples(rows, tokenizer, config.data, config.unpaired, flag)
        return list(chain.from_iterable(answers)), report

    return Reader(encode, "--max_len", config.unpaired.max_len, TITLES)


if __name__ == "__main__":
    main()
