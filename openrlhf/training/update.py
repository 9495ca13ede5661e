"""Epochs × mini-batches × micro-batches: everything that learns goes through here, and nothing else calls backward.

An objective returns one loss per weighted element and never reduces. ``loss_weights`` sum to 1 over the mini-batch on
all ranks and are fixed before the first forward, so micro-batch size, packing and the number of ranks cannot change
the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from openrlhf.algorithms.masked import sequence_mean_weights, token_mean_weights
from openrlhf.objectives.loss import Objective
from openrlhf.training.metric_names import SKIPPED_STEP
from openrlhf.training.micro_batches import Size, cut
from openrlhf.training.roles import StepEngine
from openrlhf.types import Batch, Metrics, merge_metrics

Weigh = Callable[[Batch, StepEngine], Tensor]  # → loss weights that sum to 1 over the mini-batch on all ranks


def weighted_sum(elements: Tensor, weights: Tensor) -> Tensor:
    """Σ element · weight over the elements that have weight; the others may hold anything, NaN too."""
    return torch.where(weights != 0, elements * weights, 0.0).sum()


def token_mean(batch: Batch, engine: StepEngine) -> Tensor:
    """Weights (B, T) of the mean over every action token of the mini-batch on all ranks."""
    total = engine.sum_over_ranks(batch.action_mask.sum().float().to(engine.device)).to(batch.action_mask.device)
    return token_mean_weights(batch.action_mask, total)


def sequence_mean(batch: Batch, engine: StepEngine) -> Tensor:
    """Weights (B, T) of the mean over every answer of the mini-batch on all ranks, each the mean over its tokens."""
    mask = batch.action_mask
    answers = engine.sum_over_ranks(mask.any(dim=1).sum().float().to(engine.device)).to(mask.device)
    return sequence_mean_weights(mask, answers)


def pair_mean(batch: Batch, engine: StepEngine) -> Tensor:
    """Weights (B,) of the mean over every example of two rows in the mini-batch on all ranks.

    The even row (the chosen answer, the labelled one) carries the weight of its example. One that only fills up a rank
    has no action token.
    """
    real = batch.action_mask.any(dim=1).float()
    real[1::2] = 0
    total = engine.sum_over_ranks(real.sum().to(engine.device)).to(real.device)
    return real / total.clamp(min=1)


def optimizer_step(
    engine: StepEngine, rows: Batch, objective: Objective, micro_batch: Size, weigh: Weigh = token_mean
) -> Metrics:
    """One optimizer step on this rank's rows of a mini-batch. Returns the metrics of the whole mini-batch."""
    rows = rows.fill(loss_weights=weigh(rows, engine))
    cuts = cut(rows, micro_batch, engine)
    totals: dict[str, Tensor] = {}
    engine.model.train()
    poison = Poison()
    hook = engine.model.register_forward_hook(poison.watch)
    for i, chosen in enumerate(cuts):
        part = rows.select(chosen).to(engine.device)
        loss = objective(engine.model, part)
        weights = part.loss_weights
        assert weights is not None
        total = weighted_sum(loss.elements, weights)
        poison.judge(total)
        engine.backward(total, last=i == len(cuts) - 1)
        for name, elements in {"loss": loss.elements.detach(), **loss.metrics}.items():
            share = weighted_sum(elements.float(), weights)
            totals[name] = totals[name] + share if name in totals else share
    hook.remove()
    stats = engine.step()
    if stats.skipped:
        return {"lr": stats.lr, "skipped_steps": 1.0}
    # One reduction for all metrics; no host synchronisation inside the micro-batches.
    sums = engine.sum_over_ranks(torch.stack(list(totals.values()))).tolist()
    made = {"grad_norm": stats.grad_norm, "lr": stats.lr, "skipped_steps": 0.0}
    return {**dict(zip(totals, sums, strict=True)), **made}


class Poison:
    """Turns the whole gradient of a loss that is not finite into NaN.

    Then the gradient alone, which every process of the model sees, tells all of them to leave the step out: no host
    synchronisation, no further reduction. It sits at the model's outputs, since a loss may be NaN where no gradient
    flows back from it: at a clipped ratio, say, or a value that a mask has replaced.
    """

    factor: Tensor

    def judge(self, loss: Tensor) -> None:
        """Of which the backward pass comes next."""
        self.factor = torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)

    def watch(self, model: nn.Module, inputs: object, output: Any) -> None:
        """The hook of a model's forward."""
        for tensor in output if isinstance(output, tuple) else (output,):
            if tensor is not None and tensor.requires_grad:
                tensor.register_hook(lambda gradient: gradient * self.factor)


def update(
    engine: StepEngine,
    rows: Batch,
    objective: Objective,
    train_batch_size: int,
    micro_batch: Size,
    epochs: int,
    weigh: Weigh = token_mean,
) -> Metrics:
    """All optimizer steps on a rollout batch; ``rows`` are this rank's, mini-batch after mini-batch.

    ``train_batch_size`` counts rows on all ranks. Returns the mean of each metric over the steps that were made, how
    many were skipped, and which.
    """
    local = train_batch_size // engine.world
    starts = range(0, len(rows), local)
    steps = [
        optimizer_step(engine, rows.select(slice(start, start + local)), objective, micro_batch, weigh)
        for _ in range(epochs)
        for start in starts
    ]
    skipped = [number for number, step in enumerate(steps) if step["skipped_steps"]]
    which = {f"{SKIPPED_STEP}{number}": 1.0 for number in skipped}
    return {**merge_metrics(steps), "skipped_steps": float(len(skipped)), **which}
