"""An update on groups of samples to one prompt, packed: ours, where a group's prompt goes through the model once, and
the same with every row whole."""

from __future__ import annotations

import math
from functools import partial

import torch

from benchmarks.gate import Gate
from benchmarks.material import BETAS, LEARNING_RATE, MAX_NORM, VOCABULARY

GROUPS, SAMPLES, PROMPT, ANSWER = 2, 8, 128, 128


def ours(gate: Gate, model: str) -> None:
    from openrlhf.backends.local import LocalTrain
    from openrlhf.config.groups import ModelConfig, OptimConfig
    from openrlhf.models.load import load_causal_lm
    from openrlhf.objectives.language import sft_loss
    from openrlhf.training.fit import rank_rows
    from openrlhf.training.update import optimizer_step
    from openrlhf.types import Sample

    optim = OptimConfig(adam_betas=BETAS, max_norm=MAX_NORM, lr_scheduler="linear", lr_warmup_ratio=0.0)
    settings = ModelConfig(pretrain=model, packing_samples=True)
    engine = LocalTrain(load_causal_lm(model, settings), optim, LEARNING_RATE, gate.total)
    generator = torch.Generator().manual_seed(0)

    def words(count: int) -> torch.Tensor:
        return torch.randint(1, VOCABULARY, (count,), generator=generator)

    answered = torch.arange(PROMPT + ANSWER) >= PROMPT
    while gate.opens():
        prompts = [words(PROMPT) for _ in range(GROUPS)]
        samples = [Sample(torch.cat([prompt, words(ANSWER)]), answered) for prompt in prompts for _ in range(SAMPLES)]
        rows = rank_rows(samples, engine, 0)
        metrics = optimizer_step(engine, rows, partial(sft_loss, packed=True), len(rows))
        gate.record(loss=metrics["loss"], gradient=metrics["grad_norm"])


def whole(gate: Gate, model: str) -> None:
    from openrlhf.models import packing

    packing.LEAST_SHARED = math.inf
    ours(gate, model)
