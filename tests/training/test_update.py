"""What must not change the gradient: micro-batches, packing, ranks, the order of rows, rubbish in masked slots."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from openrlhf.backends.local import LocalTrain
from openrlhf.config.groups import OptimConfig
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


def one_step(name: str, batch: Batch, micro: int, packed: bool = False, recompute: bool = False):
    model = model_of(name)
    if recompute:
        model.hf.gradient_checkpointing_enable({"use_reentrant": False})
    engine = GradientEngine(model)
    metrics = optimizer_step(engine, batch, objective(name, packed), micro)
    return metrics, engine.gradients[0]


@pytest.fixture(params=OBJECTIVES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def batch(name: str) -> Batch:
    return batch_of(name, model_of(name))


@pytest.fixture
def whole(name: str, batch: Batch):
    """Metrics and gradient of the mini-batch in one piece."""
    metrics, gradient = one_step(name, batch, len(batch))
    assert gradient.norm() > 1e-2
    return metrics, gradient


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("micro", [1, 2, 3, 4, 99])
def test_micro_batches_and_packing_change_nothing(name: str, batch: Batch, whole, micro: int, packed: bool) -> None:
    metrics, gradient = one_step(name, batch, micro, packed)
    torch.testing.assert_close(gradient, whole[1], **EXACT)
    assert metrics == pytest.approx(whole[0], rel=1e-5, abs=1e-7)  # summed in float32


def test_recomputed_activations_change_nothing(name: str, batch: Batch, whole) -> None:
    _, gradient = one_step(name, batch, 2, recompute=True)
    torch.testing.assert_close(gradient, whole[1], **EXACT)


def test_the_order_of_rows_changes_nothing(name: str, batch: Batch, whole) -> None:
    metrics, gradient = one_step(name, batch.select([4, 1, 5, 0, 3, 2]), 2)
    torch.testing.assert_close(gradient, whole[1], **EXACT)
    assert metrics == pytest.approx(whole[0], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("rows", [6, 5])
def test_two_ranks_are_one(name: str, batch: Batch, rows: int) -> None:
    """Also when a rank gets a row without loss, because the rows do not divide."""
    batch = batch.select(range(rows))
    metrics, gradient = one_step(name, batch, rows)
    shared, models = batch.with_fillers(2), [model_of(name), model_of(name)]

    def rank(number: int, sum_over_ranks):
        engine = GradientEngine(models[number], sum_over_ranks)
        metrics = optimizer_step(engine, shared.select(slice(number, None, 2)), objective(name), 2)
        return metrics, engine.gradients[0]

    (first, one), (second, two) = on_two_ranks(rank)
    torch.testing.assert_close(one + two, gradient, **EXACT)
    for part in (first, second):  # every rank knows the metrics of the whole
        assert without_norm(part) == pytest.approx(without_norm(metrics), rel=1e-5, abs=1e-7)


def without_norm(metrics: dict[str, float]) -> dict[str, float]:
    """The fake rank cannot know the norm of the sum."""
    return {key: value for key, value in metrics.items() if key != "grad_norm"}


@pytest.mark.parametrize("micro", [2, 99])
def test_rubbish_in_masked_slots_changes_no_bit(name: str, batch: Batch, micro: int) -> None:
    poison = {field: getattr(batch, field).masked_fill(~batch.action_mask, float("nan")) for field in PER_TOKEN}
    poisoned = batch.fill(**poison, tokens=batch.tokens.masked_fill(~batch.attention_mask, 5))
    metrics, gradient = one_step(name, batch, micro)
    same_metrics, same_gradient = one_step(name, poisoned, micro)
    assert torch.equal(gradient, same_gradient)
    assert metrics == same_metrics


def test_the_poison_covers_every_field_of_floats() -> None:
    floats = {f.name for f in fields(Batch) if "(B, T) float32" in _comment(f.name)}
    assert floats == set(PER_TOKEN) | {"labels"}  # of the process reward model, whose own test poisons them


def _comment(field: str) -> str:
    import inspect

    return next(line for line in inspect.getsource(Batch).splitlines() if line.strip().startswith(f"{field}:"))


def test_elements_without_weight_may_be_anything() -> None:
    elements = torch.tensor([1.0, float("nan"), 3.0, float("inf")])
    assert float(weighted_sum(elements, torch.tensor([0.5, 0.0, 0.25, 0.0]))) == 1.25


def test_a_mini_batch_without_any_action_has_no_gradient(name: str, batch: Batch) -> None:
    metrics, gradient = one_step(name, batch.fill(action_mask=torch.zeros_like(batch.action_mask)), 2)
    assert metrics["loss"] == 0 and not gradient.any()


def test_only_the_last_micro_batch_is_marked(batch: Batch, name: str) -> None:
    engine = GradientEngine(model_of(name))
    optimizer_step(engine, batch, objective(name), 4)
    assert engine.flags == [False, True]


def test_update_walks_through_the_mini_batches_of_each_epoch(name: str, batch: Batch) -> None:
    """Two epochs of three mini-batches are six steps, each on its own rows alone."""
    engine = GradientEngine(model_of(name))
    update(engine, batch, objective(name), train_batch_size=2, micro_batch_size=1, epochs=2)
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
    update(alone, batch, objective("sft"), train_batch_size=4, micro_batch_size=1, epochs=1)
    shared, models = batch.with_fillers(2), [model_of("sft"), model_of("sft")]

    def rank(number: int, sum_over_ranks):
        engine = GradientEngine(models[number], sum_over_ranks)
        engine.world, engine.rank = 2, number
        update(engine, shared.select(slice(number, None, 2)), objective("sft"), 4, 1, epochs=1)
        return engine.gradients

    one, two = on_two_ranks(rank)
    assert len(one) == len(two) == len(alone.gradients) == 2
    for a, b, both in zip(one, two, alone.gradients, strict=True):
        torch.testing.assert_close(a + b, both, **EXACT)


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
