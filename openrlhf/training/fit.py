"""The supervised loop: epochs over rows, evaluation, log. One loop for every objective that learns from data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from openrlhf.config.groups import LogConfig, TrainConfig
from openrlhf.data.sampler import batches
from openrlhf.objectives.loss import Objective
from openrlhf.training.log import Phases, RunLog
from openrlhf.training.roles import TrainEngine
from openrlhf.training.update import optimizer_step, token_mean, weighted_sum
from openrlhf.types import Batch, Metrics, Sample, collate


def total_steps(rows: int, train: TrainConfig) -> int:
    """Optimizer steps of the run; the last mini-batch of an epoch may be smaller."""
    return math.ceil(rows / train.train_batch_size) * train.max_epochs


def fit(
    engine: TrainEngine,
    objective: Objective,
    samples: Sequence[Sample],
    evaluation: Sequence[Sample],
    train: TrainConfig,
    log_config: LogConfig,
    log: RunLog,
    pad_token_id: int,
) -> None:
    """Train for ``max_epochs`` over ``samples``.

    Evaluates every ``eval_steps`` steps, or at the end of each epoch for −1, when there are evaluation rows.
    """

    def evaluate() -> Metrics:
        return {"eval_loss": mean_loss(engine, objective, evaluation, train, pad_token_id)} if evaluation else {}

    order = batches(len(samples), train.train_batch_size, train.seed, train.max_epochs)
    for step, (chosen, cursor) in enumerate(order, start=1):
        phases = Phases()
        rows = rank_rows([samples[i] for i in chosen], engine, pad_token_id)
        metrics = optimizer_step(engine, rows, objective, train.micro_train_batch_size)
        metrics |= phases.metrics(tokens=sum(len(samples[i].tokens) for i in chosen))
        epoch_ends = cursor.consumed == 0
        due = epoch_ends if log_config.eval_steps < 0 else step % log_config.eval_steps == 0
        log.step(step, {"epoch": cursor.epoch - epoch_ends, **metrics, **(evaluate() if due else {})})


def rank_rows(samples: Sequence[Sample], engine: TrainEngine, pad_token_id: int) -> Batch:
    """This rank's rows of a mini-batch, as many as every other rank has.

    Where the rows do not divide, a rank gets a row without loss in place of the missing one: sharded models need the
    same number of forwards on every rank.
    """
    every = collate(samples, pad_token_id).with_fillers(engine.world)
    return every.select(slice(engine.rank, None, engine.world))


@torch.no_grad()
def mean_loss(
    engine: TrainEngine, objective: Objective, samples: Sequence[Sample], train: TrainConfig, pad_token_id: int
) -> float:
    """The mean loss per weighted token over ``samples`` on all ranks."""
    engine.model.eval()
    rows = rank_rows(samples, engine, pad_token_id)
    rows = rows.fill(loss_weights=token_mean(rows, engine))
    total = torch.zeros((), device=engine.device)
    for micro_batch in rows.micro_batches(train.micro_train_batch_size):
        micro_batch = micro_batch.to(engine.device)
        total += weighted_sum(objective(engine.model, micro_batch).elements, _weights(micro_batch))
    return float(engine.sum_over_ranks(total))


def _weights(batch: Batch) -> torch.Tensor:
    assert batch.loss_weights is not None
    return batch.loss_weights
