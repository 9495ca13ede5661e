"""The loss of distillation against full logits of both models, in float64."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from openrlhf.models.causal_lm import CausalLM
from openrlhf.models.teacher import Teacher
from openrlhf.objectives.distillation import kd_loss
from openrlhf.training.update import optimizer_step
from openrlhf.types import Batch, Metrics
from tests.models.helpers import VOCAB, build
from tests.training.helpers import GradientEngine, assert_same_gradient, gradient, objective, rl_batch

COEF = 0.4


def hf_loss(batch: Batch, coef: float) -> tuple[dict[str, float], Tensor]:
    """Loss, its two parts and the gradient by Transformers' logits and torch's cross-entropy, over the whole batch."""
    student, teacher = build(), build(seed=1)
    inputs = {"input_ids": batch.tokens, "attention_mask": batch.attention_mask.long()}
    chosen = batch.action_mask[:, 1:]
    logits = student(**inputs).logits[:, :-1][chosen]
    with torch.no_grad():
        soft = teacher(**inputs).logits[:, :-1][chosen].softmax(-1)
    hard = cross_entropy(logits, batch.tokens[:, 1:][chosen])
    distill = cross_entropy(logits, soft)
    loss = (1 - coef) * hard + coef * distill
    loss.backward()
    return {"loss": loss.item(), "nll": hard.item(), "distill": distill.item()}, gradient(student)


def one_step(batch: Batch, coef: float = COEF, packed: bool = False, micro: int = 6) -> tuple[Metrics, Tensor]:
    teacher = Teacher(CausalLM(build(seed=1)), VOCAB)
    engine = GradientEngine(CausalLM(build(), chunk_elements=3 * VOCAB))
    metrics = optimizer_step(engine, batch, partial(kd_loss, teacher=teacher, kd_coef=coef, packed=packed), micro)
    return metrics, engine.gradients[0]


@pytest.mark.parametrize("coef", [0.0, COEF, 1.0])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("micro", [1, 2, 6])
def test_loss_and_gradient_equal_full_logits(coef: float, packed: bool, micro: int) -> None:
    """So neither packing nor the micro-batch size matters."""
    batch = rl_batch()
    expected, want = hf_loss(batch, coef)
    metrics, got = one_step(batch, coef, packed, micro)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert_same_gradient(got, want)


def test_without_the_teacher_it_is_supervised_fine_tuning() -> None:
    batch = rl_batch()
    engine = GradientEngine(CausalLM(build()))
    sft = optimizer_step(engine, batch, objective("sft"), 6)
    metrics, got = one_step(batch, coef=0.0)
    assert metrics["loss"] == metrics["nll"] == pytest.approx(sft["loss"], rel=1e-6)
    assert_same_gradient(got, engine.gradients[0])
