"""The process reward model's loss against a plain formula on full logits."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from openrlhf.config.groups import ModelConfig
from openrlhf.models.load import load_causal_lm
from openrlhf.models.step_model import StepModel
from openrlhf.objectives.process import step_loss
from openrlhf.types import Batch, Sample, collate

STEPS = ((2, 5), (1,), (3, 4, 7))  # placeholders of three rows


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> StepModel:
    return StepModel(load_causal_lm(str(tiny_folder), ModelConfig(pretrain=str(tiny_folder))).hf).double()


def batch_of(values: tuple[tuple[float, ...], ...]) -> Batch:
    generator = torch.Generator().manual_seed(0)
    samples = []
    for steps, row in zip(STEPS, values, strict=True):
        length = steps[-1] + 2
        mask, labels = torch.zeros(length, dtype=torch.bool), torch.zeros(length)
        mask[list(steps)], labels[list(steps)] = True, torch.tensor(row, dtype=torch.float32)
        samples.append(Sample(torch.randint(5, 250, (length,), generator=generator), mask, labels=labels))
    return collate(samples, pad_token_id=0)


def log_softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    total = sum(math.exp(x - top) for x in logits)
    return [x - top - math.log(total) for x in logits]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("tokens", "soft", "values"),
    [
        ((40, 41), False, ((0, 1), (1,), (0, 0, 1))),
        ((40, 41, 42), False, ((2, 1), (0,), (0, 2, 1))),
        (None, False, ((40, 41), (41,), (99, 40, 7))),
        ((40, 41), True, ((0.25, 1.0), (0.5,), (0.0, 0.9, 0.1))),
    ],
    ids=["two tokens", "three tokens", "whole vocabulary", "soft"],
)
def test_it_equals_the_formula(model: StepModel, tokens, soft: bool, values, packed: bool) -> None:
    batch = batch_of(values)
    loss = step_loss(model, batch, tokens=tokens, soft=soft, packed=packed)
    for row, (steps, labels) in enumerate(zip(STEPS, values, strict=True)):
        logits = model.hf(batch.tokens[row : row + 1, : steps[-1] + 2]).logits[0].tolist()
        for step, label in zip(steps, labels, strict=True):
            seen = logits[step] if tokens is None else [logits[step][t] for t in tokens]  # at the placeholder itself
            log_p = log_softmax(seen)
            expected = -(label * log_p[0] + (1 - label) * log_p[1]) if soft else -log_p[int(label)]
            assert loss.elements[row, step].item() == pytest.approx(expected, rel=1e-5)
            best = max(range(len(log_p)), key=log_p.__getitem__)
            right = best == (int(label < 0.5) if soft else int(label))
            assert loss.metrics["accuracy"][row, step].item() == float(right)
    assert (loss.elements[~batch.action_mask] == 0).all()
