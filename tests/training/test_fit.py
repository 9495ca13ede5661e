"""The supervised loop: which rows, how often, when it evaluates, how the learning rate runs."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import nn

from openrlhf.backends.local import LocalTrain
from openrlhf.config.groups import LogConfig, OptimConfig, TrainConfig
from openrlhf.models.causal_lm import CausalLM
from openrlhf.objectives.language import sft_loss
from openrlhf.objectives.loss import Loss
from openrlhf.training.fit import Task, evaluate, fit, rank_rows, total_steps
from openrlhf.training.log import RunLog
from openrlhf.types import Batch, Metrics, Sample
from tests.models.helpers import build
from tests.training.helpers import GradientEngine, assert_same_gradient, gradient, on_two_ranks, rl_batch


class OneNumber(nn.Module):
    """The smallest model: one weight. Its loss on a row is weight · first token."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.seen: list[tuple[bool, list[int]]] = []

    def forward(self, batch: Batch) -> torch.Tensor:
        self.seen.append((self.training, batch.tokens[batch.action_mask].tolist()))
        return self.weight * batch.tokens


def one_number(model: nn.Module, batch: Batch) -> Loss:
    return Loss(model(batch))


class Lines(RunLog):
    def __init__(self) -> None:
        super().__init__(Path("nowhere"), LogConfig(), {}, writes=False)
        self.lines: list[Metrics] = []

    def step(self, step: int, metrics: Metrics) -> None:
        super().step(step, metrics)
        self.lines.append(metrics)


def rows(count: int, first: int = 0) -> list[Sample]:
    """Row i is [i, 0] and its first token carries loss."""
    return [Sample(torch.tensor([first + i, 0]), torch.tensor([True, False])) for i in range(count)]


def trained(
    count: int, train: TrainConfig, evaluation: int = 0, eval_steps: int = -1, optim: OptimConfig | None = None
):
    engine = LocalTrain(OneNumber(), optim or OptimConfig(), 0.01, total_steps(count, train))
    log = Lines()
    held_out = rows(evaluation, first=1000)
    every = LogConfig(eval_steps=eval_steps)
    fit(engine, Task(one_number), rows(count), held_out, train, every, log, 0, train.micro_train_batch_size)
    return engine, log.lines


SIZES = [(8, 4, 2), (10, 4, 2), (3, 4, 2), (7, 2, 1), (1, 8, 8), (9, 3, 3)]  # rows, mini-batch, micro-batch


@pytest.mark.parametrize(("count", "size", "micro"), SIZES)
def test_every_row_is_trained_exactly_once_an_epoch(count: int, size: int, micro: int) -> None:
    train = TrainConfig(train_batch_size=size, micro_train_batch_size=micro, max_epochs=3)
    engine, lines = trained(count, train)
    seen = [tokens for _, tokens in engine.model.seen]
    assert max(map(len, seen)) <= micro
    flat = list(chain.from_iterable(seen))
    for epoch in range(3):
        assert sorted(flat[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert len(lines) == total_steps(count, train) == 3 * math.ceil(count / size)
    assert [line["epoch"] for line in lines] == sorted(line["epoch"] for line in lines)
    assert Counter(line["epoch"] for line in lines) == {e: math.ceil(count / size) for e in range(3)}


def test_epochs_have_orders_of_their_own_and_the_seed_repeats_them() -> None:
    train = TrainConfig(train_batch_size=8, micro_train_batch_size=8, max_epochs=2)
    first = [tokens for _, tokens in trained(8, train)[0].model.seen]
    again = [tokens for _, tokens in trained(8, train)[0].model.seen]
    assert first == again
    assert first[0] != first[1]


def test_the_loss_is_the_mean_over_the_rows_of_the_last_smaller_batch_too() -> None:
    """Weight stays 1 without a learning rate, so a step's loss is the mean of its row numbers."""
    engine = LocalTrain(OneNumber(), OptimConfig(lr_warmup_ratio=0), 0.0, 2)
    log = Lines()
    train = TrainConfig(train_batch_size=3, max_epochs=1)
    fit(engine, Task(one_number), rows(4), [], train, LogConfig(), log, 0, 2)
    flat = list(chain.from_iterable(tokens for _, tokens in engine.model.seen))
    assert [line["loss"] for line in log.lines] == pytest.approx([sum(flat[:3]) / 3, flat[3]])


@pytest.mark.parametrize(("count", "size", "micro"), SIZES)
@pytest.mark.parametrize("ratio", [0.0, 0.03, 0.5])
def test_the_schedule_ends_with_the_last_step(count: int, size: int, micro: int, ratio: float) -> None:
    train = TrainConfig(train_batch_size=size, micro_train_batch_size=micro, max_epochs=4)
    engine, lines = trained(count, train, optim=OptimConfig(lr_warmup_ratio=ratio))
    steps = total_steps(count, train)
    warmup = math.ceil(steps * ratio)
    expected = [
        0.01 * step / warmup
        if step < warmup
        else 0.01 * (0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))))
        for step in range(steps)
    ]
    assert [line["lr"] for line in lines] == pytest.approx(expected)
    assert engine.scheduler.get_last_lr() == pytest.approx([0.001])  # what one step more would have


@pytest.mark.parametrize(("eval_steps", "at"), [(-1, [3, 6]), (2, [2, 4, 6]), (4, [4]), (100, [])])
def test_it_evaluates_at_the_end_of_an_epoch_or_every_so_many_steps(eval_steps: int, at: list[int]) -> None:
    train = TrainConfig(train_batch_size=2, micro_train_batch_size=1, max_epochs=2)
    engine, lines = trained(5, train, evaluation=3, eval_steps=eval_steps)
    assert [step for step, line in enumerate(lines, start=1) if "eval_loss" in line] == at
    held_out = [tokens for training, tokens in engine.model.seen if not training]
    assert sorted(list(chain.from_iterable(held_out))) == sorted([1000, 1001, 1002] * len(at))
    assert all(max(tokens) < 1000 for training, tokens in engine.model.seen if training)


def test_without_evaluation_rows_there_is_no_evaluation() -> None:
    _, lines = trained(4, TrainConfig(train_batch_size=2, micro_train_batch_size=1, max_epochs=1))
    assert not any("eval_loss" in line for line in lines)


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_the_evaluation_is_the_mean_over_all_tokens_and_leaves_no_gradient(micro: int) -> None:
    batch = rl_batch()
    samples = [
        Sample(batch.tokens[i, : int(n)], batch.action_mask[i, : int(n)]) for i, n in enumerate(batch.lengths.tolist())
    ]
    model = CausalLM(build())
    engine = LocalTrain(model, OptimConfig(), 0.0, 1)
    got = evaluate(engine, Task(partial(sft_loss, packed=False)), samples, micro, pad_token_id=0)["eval_loss"]
    with torch.no_grad():
        log_probs = model(batch).log_probs
    assert got == pytest.approx(-float(log_probs[batch.action_mask].mean()), rel=1e-6)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("count", [4, 5, 1])
def test_the_ranks_share_the_rows_of_a_mini_batch(count: int) -> None:
    """Both ranks get as many rows, each row once; what fills up carries no loss."""
    got = []
    for rank in (0, 1):
        engine = GradientEngine(OneNumber())
        engine.rank, engine.world = rank, 2
        got.append(rank_rows(rows(count), engine, 0))
    assert len(got[0]) == len(got[1])
    assert sorted(list(chain.from_iterable(part.tokens[part.action_mask].tolist() for part in got))) == list(
        range(count)
    )


def test_two_ranks_have_the_evaluation_and_the_gradients_of_one() -> None:
    samples = [Sample(torch.randint(2, 90, (n,)), torch.arange(n) > 1) for n in (5, 9, 3, 7, 4)]
    train = TrainConfig(train_batch_size=4, max_epochs=1)
    objective = partial(sft_loss, packed=False)

    def run(rank: int, world: int, model: CausalLM, sum_over_ranks) -> tuple[list[torch.Tensor], list[Metrics]]:
        engine, log = GradientEngine(model, sum_over_ranks), Lines()
        engine.rank, engine.world = rank, world
        fit(engine, Task(objective), samples, samples[:3], train, LogConfig(), log, 0, 1)
        return engine.gradients, log.lines

    alone, alone_lines = run(0, 1, CausalLM(build()), lambda x: x)
    models = [CausalLM(build()), CausalLM(build())]
    (one, lines), (two, same_lines) = on_two_ranks(lambda rank, exchange: run(rank, 2, models[rank], exchange))
    for a, b, both in zip(one, two, alone, strict=True):
        assert_same_gradient(a, both)
        assert_same_gradient(b, both)
    for name in ("loss", "eval_loss"):
        expected = [line[name] for line in alone_lines if name in line]
        assert [line[name] for line in lines if name in line] == pytest.approx(expected)
        assert [line[name] for line in same_lines if name in line] == pytest.approx(expected)


def test_a_run_equals_a_plain_torch_loop() -> None:
    """Cross-entropy by hand, torch's AdamW and clipping, on the rows in the order of the log: the same weights."""
    samples = [Sample(torch.randint(2, 90, (n,)), torch.arange(n) > 1) for n in (5, 9, 3, 7, 4, 8)]
    train = TrainConfig(train_batch_size=2, micro_train_batch_size=1, max_epochs=1)
    optim = OptimConfig(lr_warmup_ratio=0, lr_scheduler="constant", l2=0.1, max_norm=0.5)
    model = CausalLM(build())
    engine, log = LocalTrain(model, optim, 1e-3, 3), Lines()
    order: list[Batch] = []

    def recording(network: nn.Module, batch: Batch) -> Loss:
        order.append(batch)
        return sft_loss(network, batch, packed=False)

    fit(engine, Task(recording), samples, [], train, LogConfig(), log, 0, 1)

    hf = build()
    plain = torch.optim.AdamW(hf.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    for pair in zip(order[::2], order[1::2], strict=True):
        losses = []
        for row in pair:
            table = hf(row.tokens).logits[0].log_softmax(-1)
            losses += [-table[t - 1, row.tokens[0, t]] for t in range(2, row.tokens.shape[1])]
        plain.zero_grad()
        (sum(losses) / len(losses)).backward()
        assert gradient(hf).norm() > 0.5
        torch.nn.utils.clip_grad_norm_(hf.parameters(), 0.5)
        plain.step()
    for p, q in zip(model.parameters(), hf.parameters(), strict=True):
        assert float((p - q).detach().abs().max()) < 2e-5  # a fiftieth of a step: AdamW amplifies rounding where g ≈ 0
