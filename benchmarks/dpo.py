"""DPO three ways: ours, a bare PyTorch loop, TRL. Same weights, reference, pairs, AdamW, clip and schedule."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.gate import Gate
from benchmarks.material import BETAS, LEARNING_RATE, MAX_NORM
from benchmarks.pairs import PAIRS, PROMPT, answer_log_probs, pairs, text
from benchmarks.sft import padded

BETA = 0.1


def ours(gate: Gate, model: str, lengths: str, packed: bool) -> None:
    """The step of ``training.fit`` with the reference's forward before it, as ``openrlhf dpo`` does."""
    from openrlhf.backends.local import LocalForward, LocalTrain
    from openrlhf.config.groups import ModelConfig, OptimConfig
    from openrlhf.models.load import load_causal_lm
    from openrlhf.objectives.preference import preference_loss
    from openrlhf.training.fit import rank_rows
    from openrlhf.training.members import forward
    from openrlhf.training.update import optimizer_step, pair_mean
    from openrlhf.types import Sample

    optim = OptimConfig(adam_betas=BETAS, max_norm=MAX_NORM, lr_scheduler="linear", lr_warmup_ratio=0.0)
    settings = ModelConfig(pretrain=model, packing_samples=packed)
    engine = LocalTrain(load_causal_lm(model, settings), optim, LEARNING_RATE, gate.total)
    reference = LocalForward(load_causal_lm(model, settings))
    samples = [
        Sample(torch.tensor(row), torch.arange(len(row)) >= PROMPT)
        for pair in pairs(lengths, gate.total * PAIRS)
        for row in pair.rows
    ]
    objective = partial(preference_loss, beta=BETA, label_smoothing=0.0, ipo=False, nll_loss_coef=0.0, packed=packed)
    at = 0
    while gate.opens():
        rows = rank_rows(samples[at : at + 2 * PAIRS], engine, 0, rows=2)
        rows = rows.fill(ref_log_probs=forward(reference, rows, 2 * PAIRS, packed))
        gate.record(loss=optimizer_step(engine, rows, objective, 2 * PAIRS, pair_mean)["loss"])
        at += 2 * PAIRS


def loop(gate: Gate, model: str, lengths: str) -> None:
    """What one writes by hand: chosen and rejected padded together, full logits."""
    from transformers import AutoModelForCausalLM, get_scheduler

    rows = [row for pair in pairs(lengths, gate.total * PAIRS) for row in pair.rows]
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).train()
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0, fused=True)
    scheduler = get_scheduler("linear", optimizer, 0, gate.total)
    at = 0
    while gate.opens():
        tokens, mask = padded(rows[at : at + 2 * PAIRS])
        with torch.no_grad():
            before = answer_log_probs(reference, tokens, mask)
        ratios = answer_log_probs(network, tokens, mask) - before
        loss = -F.logsigmoid(BETA * (ratios[0::2] - ratios[1::2])).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), MAX_NORM)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        gate.record(loss=loss.item())
        at += 2 * PAIRS


def trl(gate: Gate, model: str, lengths: str) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from benchmarks.trl_gate import GateCallback, record_losses

    every = pairs(lengths, gate.total * PAIRS)
    columns = {
        "prompt": [text(pair.prompt) for pair in every],
        "chosen": [f" {text(pair.chosen)}" for pair in every],
        "rejected": [f" {text(pair.rejected)}" for pair in every],
    }
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        ref_model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=DPOConfig(beta=BETA, **trainer_options(model, gate.total)),
        train_dataset=Dataset.from_dict(columns),
        processing_class=AutoTokenizer.from_pretrained(model),
        callbacks=[GateCallback(gate)],
    )
    record_losses(trainer, gate)
    trainer.train()


def trainer_options(model: str, steps: int) -> dict[str, Any]:
    """What TRL's preference trainers are given alike: our optimizer and schedule, no logging, no saving."""
    return {
        "output_dir": str(Path(model) / "trl"),
        "per_device_train_batch_size": PAIRS,
        "max_steps": steps,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "linear",
        "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1],
        "max_grad_norm": MAX_NORM,
        "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential",
        "logging_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "max_length": None,
    }
