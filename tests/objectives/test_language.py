"""The supervised loss against a plain Transformers loop with cross-entropy, in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from openrlhf.models.causal_lm import CausalLM
from openrlhf.training.update import optimizer_step
from openrlhf.types import Batch
from tests.models.helpers import build
from tests.training.helpers import GradientEngine, assert_same_gradient, gradient, objective, rl_batch


def hf_loss(batch: Batch) -> tuple[float, torch.Tensor]:
    """Loss and gradient by Transformers' own logits and torch's own cross-entropy, over the whole batch."""
    hf = build()
    labels = batch.tokens.masked_fill(~batch.action_mask, -100)
    logits = hf(batch.tokens, attention_mask=batch.attention_mask.long()).logits
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    loss.backward()
    return loss.item(), gradient(hf)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("micro", [2, 6])
def test_loss_and_gradient_equal_cross_entropy(packed: bool, micro: int) -> None:
    batch = rl_batch()
    loss, expected = hf_loss(batch)
    engine = GradientEngine(CausalLM(build()))
    metrics = optimizer_step(engine, batch, objective("sft", packed), micro)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-6)
    assert_same_gradient(engine.gradients[0], expected)
