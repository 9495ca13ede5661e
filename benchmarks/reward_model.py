"""Reward models three ways: ours, a bare PyTorch loop, TRL. Same weights and head, pairs, AdamW, clip and schedule."""

from __future__ import annotations

from functools import partial

import torch
from torch.nn import functional as F

from benchmarks.dpo import trainer_options
from benchmarks.gate import Gate
from benchmarks.material import BETAS, LEARNING_RATE, MAX_NORM
from benchmarks.pairs import PAIRS, pairs, text
from benchmarks.sft import padded


def ours(gate: Gate, model: str, lengths: str, packed: bool) -> None:
    """The step of ``training.fit`` with the objective of ``openrlhf rm``."""
    from openrlhf.backends.local import LocalTrain
    from openrlhf.config.groups import ModelConfig, OptimConfig
    from openrlhf.models.load import load_score_model
    from openrlhf.objectives.reward import pair_loss
    from openrlhf.training.fit import rank_rows
    from openrlhf.training.update import optimizer_step, pair_mean
    from openrlhf.types import Sample

    optim = OptimConfig(adam_betas=BETAS, max_norm=MAX_NORM, lr_scheduler="linear", lr_warmup_ratio=0.0)
    settings = ModelConfig(pretrain=model, packing_samples=packed)
    engine = LocalTrain(load_score_model(model, settings, "score"), optim, LEARNING_RATE, gate.total)
    samples = [
        Sample(torch.tensor(row), torch.ones(len(row), dtype=torch.bool))
        for pair in pairs(lengths, gate.total * PAIRS)
        for row in pair.rows
    ]
    objective = partial(pair_loss, loss="sigmoid", margin=False, fp32=False, packed=packed)
    at = 0
    while gate.opens():
        rows = rank_rows(samples[at : at + 2 * PAIRS], engine, 0, rows=2)
        gate.record(loss=optimizer_step(engine, rows, objective, 2 * PAIRS, pair_mean)["loss"])
        at += 2 * PAIRS


def loop(gate: Gate, model: str, lengths: str) -> None:
    """What one writes by hand: chosen and rejected padded together, the library's classifier."""
    from transformers import AutoModelForSequenceClassification, get_scheduler

    rows = [row for pair in pairs(lengths, gate.total * PAIRS) for row in pair.rows]
    network = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0, fused=True)
    scheduler = get_scheduler("linear", optimizer, 0, gate.total)
    at = 0
    while gate.opens():
        tokens, mask = padded(rows[at : at + 2 * PAIRS])
        scores = network(input_ids=tokens, attention_mask=mask, use_cache=False).logits.squeeze(-1)
        loss = -F.logsigmoid(scores[0::2] - scores[1::2]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), MAX_NORM)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        gate.record(loss=loss.item())
        at += 2 * PAIRS


def trl(gate: Gate, model: str, lengths: str) -> None:
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    from benchmarks.trl_gate import GateCallback, record_losses

    every = [[text(row) for row in pair.rows] for pair in pairs(lengths, gate.total * PAIRS)]
    trainer = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32),
        args=RewardConfig(**trainer_options(model, gate.total)),
        train_dataset=Dataset.from_dict({"chosen": [a for a, _ in every], "rejected": [b for _, b in every]}),
        processing_class=AutoTokenizer.from_pretrained(model),
        callbacks=[GateCallback(gate)],
    )
    record_losses(trainer, gate)
    trainer.train()
