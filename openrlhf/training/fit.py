"""The supervised loop: epochs over rows, evaluation, log. One loop for every objective that learns from data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from openrlhf.config.groups import LogConfig, TrainConfig
from openrlhf.data.balance import even_shares
from openrlhf.data.sampler import batches
from openrlhf.objectives.loss import Objective
from openrlhf.training.checkpoints import Checkpoints, Progress, close_step
from openrlhf.training.log import Phases, RunLog
from openrlhf.training.metric_names import EVALUATED
from openrlhf.training.micro_batches import Size, cut
from openrlhf.training.roles import TrainEngine
from openrlhf.training.skips import Skips
from openrlhf.training.update import Weigh, optimizer_step, token_mean, weighted_sum
from openrlhf.types import Batch, Metrics, Sample, collate, present

Enter = Callable[[str, int], None]  # a phase of the run, and the step before it


@dataclass(frozen=True)
class Task:
    """What a supervised command learns."""

    objective: Objective
    weigh: Weigh = token_mean
    rows: int = 1  # samples of one example, which stay together: 2 for chosen and rejected
    prepare: Callable[[Batch], Batch] = lambda batch: batch  # fills fields that do not train, such as ref_log_probs


def total_steps(examples: int, train: TrainConfig) -> int:
    """Optimizer steps of the run; the last mini-batch of an epoch may be smaller."""
    return math.ceil(examples / train.train_batch_size) * train.max_epochs


def fit(
    engine: TrainEngine,
    task: Task,
    samples: Sequence[Sample],
    evaluation: Sequence[Sample],
    train: TrainConfig,
    log_config: LogConfig,
    log: RunLog,
    pad_token_id: int,
    micro_batch: Size,
    checkpoints: Checkpoints | None = None,
    enter: Enter = lambda phase, after: None,
) -> None:
    """Train for ``max_epochs`` over ``samples``, ``task.rows`` of which make an example; batch sizes count examples.
    With ``checkpoints`` from where they start.

    ``micro_batch`` is the size of a forward. Evaluates every ``eval_steps`` steps, or at the end of each epoch for −1,
    when there are evaluation rows. ``enter`` hears what comes, and after which step.
    """
    start = checkpoints.start if checkpoints else Progress()
    skips = Skips(train.max_skipped_steps, log, start.skipped)
    order = batches(len(samples) // task.rows, train.train_batch_size, train.seed, train.max_epochs, start.cursor)
    for step, (chosen, cursor) in enumerate(order, start=start.step + 1):
        enter("update", step - 1)
        phases = Phases()
        mini_batch = [sample for i in chosen for sample in samples[i * task.rows : (i + 1) * task.rows]]
        rows = task.prepare(rank_rows(mini_batch, engine, pad_token_id, task.rows))
        metrics = optimizer_step(engine, rows, task.objective, micro_batch, task.weigh)
        metrics |= phases.metrics(tokens=sum(len(sample.tokens) for sample in mini_batch))
        epoch_ends = cursor.consumed == 0
        due = epoch_ends if log_config.eval_steps < 0 else step % log_config.eval_steps == 0
        if due and evaluation:
            metrics |= evaluate(engine, task, evaluation, micro_batch, pad_token_id, partial(enter, "evaluate", step))
        log.step(step, {"epoch": cursor.epoch - epoch_ends, **metrics})
        skips.note(step, "model", bool(metrics["skipped_steps"]), [sample.group for sample in mini_batch[:: task.rows]])
        enter("checkpoint", step)
        close_step(Progress(step, cursor, skipped=dict(skips.in_a_row)), checkpoints, skips.why)


def rank_rows(samples: Sequence[Sample], engine: TrainEngine, pad_token_id: int, rows: int = 1) -> Batch:
    """This rank's rows of a mini-batch, as ``rank_part`` cuts them."""
    return rank_part(collate(samples, pad_token_id), engine.rank, engine.world, rows)


def rank_part(batch: Batch, rank: int, ranks: int, rows: int = 1) -> Batch:
    """One rank's rows of a mini-batch: as many as every other rank has, and nearly as many tokens; ``rows`` neighbours
    stay together.

    Where they do not divide, a rank gets rows without loss in place of the missing ones: sharded models need the same
    number of forwards on every rank.
    """
    every = batch.with_fillers(ranks * rows)
    examples = torch.arange(len(every)).view(-1, rows)
    mine = even_shares(every.lengths.view(-1, rows).sum(dim=1).tolist(), ranks, len(examples))[rank]
    return every.select(examples[mine].flatten())


@torch.no_grad()
def evaluate(
    engine: TrainEngine,
    task: Task,
    samples: Sequence[Sample],
    micro_batch: Size,
    pad_token_id: int,
    goes_on: Callable[[], None] = lambda: None,
) -> Metrics:
    """``eval_loss`` and the objective's metrics under ``eval_`` names, as weighted means over ``samples``."""
    engine.model.eval()
    rows = rank_rows(samples, engine, pad_token_id, task.rows)
    rows = rows.fill(loss_weights=task.weigh(rows, engine))
    totals: dict[str, Tensor] = {}
    rows = task.prepare(rows)
    for chosen in cut(rows, micro_batch, engine):
        goes_on()
        part = rows.select(chosen).to(engine.device)
        loss = task.objective(engine.model, part)
        for name, elements in {"loss": loss.elements, **loss.metrics}.items():
            share = weighted_sum(elements.float(), present(part.loss_weights, "loss_weights"))
            totals[name] = totals[name] + share if name in totals else share
    sums = engine.sum_over_ranks(torch.stack(list(totals.values()))).tolist()
    return {EVALUATED + name: value for name, value in zip(totals, sums, strict=True)}
