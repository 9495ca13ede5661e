"""Reward model from pairs: ``openrlhf rm``, ``python -m openrlhf.cli.train_rm``, or the module under
``deepspeed --module`` and ``torchrun -m``."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from openrlhf.cli.restarts import run_training
from openrlhf.config.commands import RMConfig

if TYPE_CHECKING:
    from openrlhf.data.reader import Reader


def main(argv: list[str] | None = None) -> None:
    run_training(run, RMConfig, argv)


def run(config: RMConfig) -> None:
    """Pairs → ``fit`` → mean and std of the scores → a folder for AutoModelForSequenceClassification."""
    from openrlhf.cli.supervised import is_first, preview, read, save, start, train, train_engine
    from openrlhf.models.adapters import with_adapter
    from openrlhf.models.load import load_score_model
    from openrlhf.models.value_head import ScoreModel
    from openrlhf.objectives.balance import balanced, each_pair
    from openrlhf.objectives.reward import pair_loss
    from openrlhf.training.fit import Task
    from openrlhf.training.micro_batches import train_size
    from openrlhf.training.scores import score_statistics, spread_pairs
    from openrlhf.training.update import pair_mean

    data, pairs, model = config.data, config.pairs, config.model
    tokenizer = start(config)

    how = reader(config, tokenizer)
    samples, evaluation = read(config, pairs, how)
    if data.preview:
        preview(config, tokenizer, samples, how)
        return

    built: list[ScoreModel] = []  # the model inside the engine, for its statistics

    def build() -> ScoreModel:
        scorer = load_score_model(model.pretrain, model, model.value_head_prefix, new_head=not has_head(config))
        built.append(with_adapter(scorer, model))
        return built[0]

    engine = train_engine(config, build, len(samples) // 2)
    loss = config.reward_training
    objective = partial(
        pair_loss,
        loss=loss.loss,
        margin=loss.margin_loss,
        fp32=loss.compute_fp32_loss,
        packed=model.packing_samples,
    )
    task = Task(balanced(objective, model.aux_loss_coef, each_pair), pair_mean, rows=2)
    pulse = train(config, "rm", engine, task, samples, evaluation, tokenizer)
    judged = evaluation or spread_pairs(samples)
    if is_first() and not evaluation:
        print(
            f"the mean and std of the scores, for --normalize_reward, are of {len(judged) // 2} of the "
            f"{len(samples) // 2} training pairs; --eval_dataset names others"
        )
    micro_batch = train_size(config.train, model)
    mean, std = score_statistics(engine, judged, micro_batch, model.packing_samples, tokenizer.pad_token_id)
    built[0].set_statistics(mean, std)
    save(config, engine, tokenizer, pulse)


def has_head(config: RMConfig) -> bool:
    """Whether ``--pretrain`` is a reward model already, whose head training goes on with."""
    from openrlhf.models.load import is_score_model

    return is_score_model(config.model.pretrain, config.model)


def reader(config: RMConfig, tokenizer: Any) -> Reader:
    """How rows become samples of this command."""
    from openrlhf.data.paired import TITLES, paired_samples
    from openrlhf.data.reader import Reader
    from openrlhf.data.report import DropReport
    from openrlhf.data.rows import Row
    from openrlhf.types import Sample

    def encode(rows: Iterable[Row], flag: str) -> tuple[list[Sample], DropReport]:
        pairs, report = paired_samples(rows, tokenizer, config.data, config.pairs, drop_long_prompts=False, flag=flag)
        for chosen, rejected in pairs:
            chosen.reward, rejected.reward = chosen.metrics.get("margin", 0.0), 0.0
        return list(chain.from_iterable(pairs)), report

    return Reader(encode, "--max_len", config.pairs.max_len, TITLES)


if __name__ == "__main__":
    main()
