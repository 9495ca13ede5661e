"""The update: mini-batches, epochs, what has no weight. What must not change a gradient: tests/certificate."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from openrlhf.backends.local import LocalTrain
from openrlhf.config.groups import OptimConfig
from openrlhf.objectives.loss import Loss
from openrlhf.training.roles import StepStats
from openrlhf.training.update import optimizer_step, update, weighted_sum
from openrlhf.types import Batch
from tests.training.helpers import (
    GradientEngine,
    batch_of,
    model_of,
    objective,
    on_two_ranks,
    weights,
)

OBJECTIVES = ["sft", "policy", "value"]
PER_TOKEN = ["advantages", "old_log_probs", "ref_log_probs", "rollout_log_probs", "values", "returns"]
EXACT = {"rtol": 1e-9, "atol": 1e-11}


def one_step(name: str, batch: Batch, micro: int):
    engine = GradientEngine(model_of(name))
    metrics = optimizer_step(engine, batch, objective(name), micro)
    return metrics, engine.gradients[0]


@pytest.fixture(params=OBJECTIVES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def batch(name: str) -> Batch:
    return batch_of(name, model_of(name))


def test_elements_without_weight_may_be_anything() -> None:
    elements = torch.tensor([1.0, float("nan"), 3.0, float("inf")])
    assert float(weighted_sum(elements, torch.tensor([0.5, 0.0, 0.25, 0.0]))) == 1.25


def test_a_mini_batch_without_any_action_has_no_gradient(name: str, batch: Batch) -> None:
    metrics, gradient = one_step(name, batch.fill(action_mask=torch.zeros_like(batch.action_mask)), 2)
    assert metrics["loss"] == 0 and not gradient.any()


def spoiling(name: str, row: int, value: float):
    """The objective, whose loss of the one row that begins with token ``row`` is ``value``; its gradient is finite."""
    original = objective(name)

    def spoilt(model, batch: Batch) -> Loss:
        loss = original(model, batch)
        hit = (batch.tokens[:, :1] == row).expand_as(loss.elements)
        return Loss(torch.where(hit, torch.full_like(loss.elements, value), loss.elements), loss.metrics)

    return spoilt


@pytest.mark.parametrize("micro", [2, 1])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_costs_its_mini_batch_alone(
    name: str, batch: Batch, value: float, micro: int
) -> None:
    """The weights are those of an update without that mini-batch; the metrics are means over the others. Where the row
    is a micro-batch of its own no gradient flows from its loss."""
    tokens = batch.tokens.clone()
    tokens[:, 0] = torch.arange(len(batch))
    batch = batch.fill(tokens=tokens)
    results = []
    for rows, loss in ((batch, spoiling(name, 3, value)), (batch.select([0, 1, 4, 5]), objective(name))):
        engine = LocalTrain(model_of(name), OptimConfig(lr_warmup_ratio=0), 1e-3, total_steps=4)
        metrics = update(engine, rows, loss, train_batch_size=2, micro_batch=micro, epochs=1)
        results.append((weights(engine.model), metrics))
    (spoilt, seen), (without, expected) = results
    assert torch.equal(spoilt, without)
    assert seen.pop("skipped_step/1") == seen.pop("skipped_steps") == 1 and expected.pop("skipped_steps") == 0
    del seen["lr"], expected["lr"]  # the mean over all three steps
    assert seen == pytest.approx(expected, rel=1e-12)


class SharedTrain(LocalTrain):
    """Its gradient is the sum over two ranks."""

    def __init__(self, model, rank: int, sum_over_ranks) -> None:
        super().__init__(model, OptimConfig(lr_warmup_ratio=0), 1e-3, total_steps=4)
        self.rank, self.world = rank, 2
        self.sum_over_ranks = sum_over_ranks

    def step(self) -> StepStats:
        for parameter in self.parameters:
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self.sum_over_ranks(own)
        return super().step()


def test_a_loss_that_one_of_two_ranks_finds_not_finite_costs_both_the_step() -> None:
    """The second of three mini-batches, each a row a rank; no gradient flows from that loss."""
    batch = batch_of("policy", model_of("policy"))
    tokens = batch.tokens.clone()
    tokens[:, 0] = torch.arange(len(batch))
    batch, models = batch.fill(tokens=tokens), [model_of("policy"), model_of("policy")]

    def rank(number: int, sum_over_ranks):
        engine = SharedTrain(models[number], number, sum_over_ranks)
        rows = batch.select(slice(number, None, 2))
        return update(engine, rows, spoiling("policy", 3, math.nan), 2, 1, epochs=1), weights(engine.model)

    (one, mine), (two, yours) = on_two_ranks(rank)
    assert one["skipped_steps"] == two["skipped_steps"] == 1 and "skipped_step/1" in one.keys() & two.keys()
    assert torch.equal(mine, yours)
    alone = LocalTrain(model_of("policy"), OptimConfig(lr_warmup_ratio=0), 1e-3, total_steps=4)
    update(alone, batch.select([0, 1, 4, 5]), objective("policy"), 2, 1, epochs=1)
    torch.testing.assert_close(mine, weights(alone.model), rtol=0, atol=1e-8)


def test_slots_outside_the_action_mask_may_hold_nan(name: str, batch: Batch) -> None:
    poisoned = {
        field: torch.where(batch.action_mask, value, torch.nan)
        for field in PER_TOKEN
        if (value := batch.tensors().get(field)) is not None
    }
    (clean, gradient), (seen, other) = one_step(name, batch, 2), one_step(name, batch.fill(**poisoned), 2)
    assert seen == clean and torch.equal(gradient, other)


def test_only_the_last_micro_batch_is_marked(batch: Batch, name: str) -> None:
    engine = GradientEngine(model_of(name))
    optimizer_step(engine, batch, objective(name), 4)
    assert engine.flags == [False, True]


def test_update_walks_through_the_mini_batches_of_each_epoch(name: str, batch: Batch) -> None:
    """Two epochs of three mini-batches are six steps, each on its own rows alone."""
    engine = GradientEngine(model_of(name))
    update(engine, batch, objective(name), train_batch_size=2, micro_batch=1, epochs=2)
    alone = [one_step(name, batch.select([i, i + 1]), 2)[1] for i in (0, 2, 4)]
    assert len(engine.gradients) == 6
    for got, expected in zip(engine.gradients, [*alone, *alone], strict=True):
        torch.testing.assert_close(got, expected, **EXACT)


def test_update_reports_the_mean_over_its_steps(name: str, batch: Batch) -> None:
    metrics = update(GradientEngine(model_of(name)), batch, objective(name), 2, 2, epochs=1)
    steps = [one_step(name, batch.select([i, i + 1]), 2)[0] for i in (0, 2, 4)]
    assert metrics == pytest.approx({key: sum(s[key] for s in steps) / 3 for key in steps[0]}, rel=1e-5, abs=1e-7)


def test_two_ranks_step_through_a_rest_together() -> None:
    """Five rows in mini-batches of four over two ranks: both ranks make two steps, and their sums are one rank's."""
    batch = batch_of("sft", model_of("sft")).select(range(5))
    alone = GradientEngine(model_of("sft"))
    update(alone, batch, objective("sft"), train_batch_size=4, micro_batch=1, epochs=1)
    shared, models = batch.with_fillers(2), [model_of("sft"), model_of("sft")]

    def rank(number: int, sum_over_ranks):
        engine = GradientEngine(models[number], sum_over_ranks)
        engine.world, engine.rank = 2, number
        update(engine, shared.select(slice(number, None, 2)), objective("sft"), 4, 1, epochs=1)
        return engine.gradients

    one, two = on_two_ranks(rank)
    assert len(one) == len(two) == len(alone.gradients) == 2
    for a, b, both in zip(one, two, alone.gradients, strict=True):
        torch.testing.assert_close(a, both, **EXACT)
        torch.testing.assert_close(b, both, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_weights_after_real_steps_do_not_know_the_micro_batches(
    name: str, batch: Batch, dtype: torch.dtype
) -> None:
    results = []
    for micro, packed in [(6, False), (1, False), (2, True)]:
        model = model_of(name, dtype=dtype)
        engine = LocalTrain(model, OptimConfig(lr_warmup_ratio=0, adam_betas=(0.9, 0.95)), 1e-3, total_steps=4)
        for _ in range(2):
            optimizer_step(engine, cast(batch, dtype), objective(name, packed), micro)
        results.append(weights(model))
    # AdamW divides by the gradient's size, so where that is rounding noise a step may differ by a part of 1e-3.
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=1e-8 if dtype == torch.float64 else 2e-5)


def cast(batch: Batch, dtype: torch.dtype) -> Batch:
    return replace(batch, **{field: getattr(batch, field).to(dtype) for field in PER_TOKEN})
