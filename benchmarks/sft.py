"""Supervised fine-tuning three ways: ours, a bare PyTorch loop, TRL. Same weights, rows, AdamW, clip and schedule."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F

from benchmarks.gate import Gate
from benchmarks.material import BATCH, BETAS, LEARNING_RATE, MAX_NORM, Rows, token_rows


def ours(gate: Gate, model: str, lengths: str, packed: bool) -> None:
    """The step of ``training.fit``: collate, forward, backward, clip, AdamW, metrics."""
    from openrlhf.backends.local import LocalTrain
    from openrlhf.config.groups import ModelConfig, OptimConfig
    from openrlhf.models.load import load_causal_lm
    from openrlhf.objectives.language import sft_loss
    from openrlhf.training.fit import rank_rows
    from openrlhf.training.update import optimizer_step
    from openrlhf.types import Sample

    optim = OptimConfig(adam_betas=BETAS, max_norm=MAX_NORM, lr_scheduler="linear", lr_warmup_ratio=0.0)
    settings = ModelConfig(pretrain=model, packing_samples=packed)
    engine = LocalTrain(load_causal_lm(model, settings), optim, LEARNING_RATE, gate.total)
    samples = [Sample(torch.tensor(row), torch.arange(len(row)) > 0) for row in token_rows(lengths, gate.total * BATCH)]
    objective = partial(sft_loss, packed=packed)
    at = 0
    while gate.opens():
        metrics = optimizer_step(engine, rank_rows(samples[at : at + BATCH], engine, 0), objective, BATCH)
        gate.record(loss=metrics["loss"])
        at += BATCH


def loop(gate: Gate, model: str, lengths: str) -> None:
    """What one writes by hand: padded batches, full logits, cross entropy."""
    from transformers import AutoModelForCausalLM, get_scheduler

    rows = token_rows(lengths, gate.total * BATCH)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0, fused=True)
    scheduler = get_scheduler("linear", optimizer, 0, gate.total)
    at = 0
    while gate.opens():
        tokens, mask = padded(rows[at : at + BATCH])
        logits = network(input_ids=tokens, attention_mask=mask, use_cache=False).logits
        targets = tokens.masked_fill(mask == 0, -100)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), MAX_NORM)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        gate.record(loss=loss.item())
        at += BATCH


def padded(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return tokens, mask


def trl(gate: Gate, model: str, lengths: str) -> None:
    """TRL's own trainer on rows that are tokenized already, with its padding and without logging or saving."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from benchmarks.trl_gate import GateCallback, record_losses

    config = SFTConfig(
        output_dir=str(Path(model) / "trl"),
        per_device_train_batch_size=BATCH,
        max_steps=gate.total,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="linear",
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        max_grad_norm=MAX_NORM,
        gradient_checkpointing=False,
        train_sampling_strategy="sequential",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        max_length=None,
    )
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_dict({"input_ids": token_rows(lengths, gate.total * BATCH)}),
        processing_class=AutoTokenizer.from_pretrained(model),
        callbacks=[GateCallback(gate)],
    )
    record_losses(trainer, gate)
    trainer.train()
