"""DPO, IPO and cDPO from pairs: ``openrlhf dpo``, ``python -m openrlhf.cli.train_dpo``, or the module under
``deepspeed --module`` and ``torchrun -m``."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from openrlhf.cli.restarts import run_training
from openrlhf.config.commands import DPOConfig

if TYPE_CHECKING:
    from openrlhf.data.reader import Reader


def main(argv: list[str] | None = None) -> None:
    run_training(run, DPOConfig, argv)


def run(config: DPOConfig) -> None:
    """Pairs → ``fit`` against a frozen reference → a Hugging Face folder at ``--save_path``."""
    from openrlhf.backends.choose import choose_reference_engine
    from openrlhf.cli.supervised import preview, read, save, start, train, train_engine
    from openrlhf.config.derived import reference_source
    from openrlhf.models.adapters import with_adapter
    from openrlhf.models.load import load_causal_lm
    from openrlhf.models.vocabulary import check_same_tokens
    from openrlhf.objectives.balance import balanced, each_pair
    from openrlhf.objectives.preference import preference_loss
    from openrlhf.training.fit import Task
    from openrlhf.training.members import forward
    from openrlhf.training.micro_batches import train_size
    from openrlhf.training.update import pair_mean
    from openrlhf.types import Batch

    data, pairs, model, preference = config.data, config.pairs, config.model, config.preference
    tokenizer = start(config)
    check_same_tokens(reference_source(config), "--ref_pretrain", tokenizer, model)

    how = reader(config, tokenizer)
    samples, evaluation = read(config, pairs, how)
    if data.preview:
        preview(config, tokenizer, samples, how)
        return
    engine = train_engine(config, lambda: with_adapter(load_causal_lm(model.pretrain, model), model), len(samples) // 2)
    reference = choose_reference_engine(
        engine, reference_source(config), model, config.deepspeed, preference.ref_offload
    )

    def with_reference(batch: Batch) -> Batch:
        micro_batch = train_size(config.train, model, rows=2)
        return batch.fill(ref_log_probs=forward(reference, batch, micro_batch, model.packing_samples))

    objective = partial(
        preference_loss,
        beta=preference.beta,
        label_smoothing=preference.label_smoothing,
        ipo=preference.ipo,
        nll_loss_coef=preference.nll_loss_coef,
        packed=model.packing_samples,
    )
    task = Task(balanced(objective, model.aux_loss_coef, each_pair), pair_mean, rows=2, prepare=with_reference)
    pulse = train(config, "dpo", engine, task, samples, evaluation, tokenizer)
    save(config, engine, tokenizer, pulse)


def reader(config: DPOConfig, tokenizer: Any) -> Reader:
    """How rows become samples of this command."""
    from openrlhf.data.paired import TITLES, paired_samples
    from openrlhf.data.reader import Reader
    from openrlhf.data.report import DropReport
    from openrlhf.data.rows import Row
    from openrlhf.types import Sample

    def encode(rows: Iterable[Row], flag: str) -> tuple[list[Sample], DropReport]:
        pairs, report = paired_samples(rows, tokenizer, config.data, config.pairs, drop_long_prompts=True, flag=flag)
        return list(chain.from_iterable(pairs)), report

    return Reader(encode, "--max_len", config.pairs.max_len, TITLES)


if __name__ == "__main__":
    main()
