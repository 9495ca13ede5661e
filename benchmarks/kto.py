"""KTO three ways: ours, a bare PyTorch loop, TRL. Same weights, reference, answers, AdamW, clip and schedule.

Every second answer is desirable. The KL baseline comes from each prompt with the answer before it in the batch, as
TRL pairs them.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.dpo import BETA, trainer_options
from benchmarks.gate import Gate
from benchmarks.material import BETAS, LEARNING_RATE, MAX_NORM
from benchmarks.pairs import PAIRS, PROMPT, answer_log_probs, pairs, text
from benchmarks.sft import padded


def labelled_rows(lengths: str, steps: int) -> list[tuple[list[int], list[int]]]:
    """The labelled row and the mismatched row of each example."""
    examples = [(pair.prompt, pair.chosen) for pair in pairs(lengths, steps * PAIRS)]
    batches = [examples[i : i + PAIRS] for i in range(0, len(examples), PAIRS)]
    return [
        (prompt + answer, prompt + batch[i - 1][1]) for batch in batches for i, (prompt, answer) in enumerate(batch)
    ]


def ours(gate: Gate, model: str, lengths: str, packed: bool) -> None:
    """The step of ``training.fit`` with reference and baseline before it, as ``openrlhf kto`` does."""
    from openrlhf.backends.local import LocalForward, LocalTrain
    from openrlhf.config.groups import ModelConfig, OptimConfig
    from openrlhf.models.load import load_causal_lm
    from openrlhf.objectives.unpaired import kto_loss
    from openrlhf.training.baseline import with_kl_baseline
    from openrlhf.training.fit import rank_rows
    from openrlhf.training.update import optimizer_step, pair_mean
    from openrlhf.types import Sample

    optim = OptimConfig(adam_betas=BETAS, max_norm=MAX_NORM, lr_scheduler="linear", lr_warmup_ratio=0.0)
    settings = ModelConfig(pretrain=model, packing_samples=packed)
    engine = LocalTrain(load_causal_lm(model, settings), optim, LEARNING_RATE, gate.total)
    reference = LocalForward(load_causal_lm(model, settings))
    samples = [
        Sample(torch.tensor(row), torch.arange(len(row)) >= PROMPT, reward=float(i % 2 == 0))
        for i, rows in enumerate(labelled_rows(lengths, gate.total))
        for row in rows
    ]
    objective = partial(kto_loss, beta=BETA, desirable_weight=1.0, undesirable_weight=1.0, packed=packed)
    at = 0
    while gate.opens():
        rows = rank_rows(samples[at : at + 2 * PAIRS], engine, 0, rows=2)
        rows = with_kl_baseline(rows, engine, reference, PAIRS, packed)
        gate.record(loss=optimizer_step(engine, rows, objective, 2 * PAIRS, pair_mean)["loss"])
        at += 2 * PAIRS


def loop(gate: Gate, model: str, lengths: str) -> None:
    """What one writes by hand: two padded batches, full logits."""
    from transformers import AutoModelForCausalLM, get_scheduler

    rows = labelled_rows(lengths, gate.total)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).train()
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0, fused=True)
    scheduler = get_scheduler("linear", optimizer, 0, gate.total)
    signs = torch.tensor([1.0, -1.0]).repeat(PAIRS // 2)

    def log_ratios(batch: list[list[int]]) -> Tensor:
        tokens, mask = padded(batch)
        with torch.no_grad():
            before = answer_log_probs(reference, tokens, mask)
        return answer_log_probs(network, tokens, mask) - before

    at = 0
    while gate.opens():
        batch = rows[at : at + PAIRS]
        with torch.no_grad():
            kl = log_ratios([mismatched for _, mismatched in batch]).mean().clamp(min=0)
        distance = log_ratios([labelled for labelled, _ in batch]) - kl
        loss = (1 - torch.sigmoid(BETA * signs * distance)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), MAX_NORM)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        gate.record(loss=loss.item())
        at += PAIRS


def trl(gate: Gate, model: str, lengths: str) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import KTOConfig, KTOTrainer

    from benchmarks.trl_gate import GateCallback, record_losses

    every = pairs(lengths, gate.total * PAIRS)
    columns = {
        "prompt": [text(pair.prompt) for pair in every],
        "completion": [f" {text(pair.chosen)}" for pair in every],
        "label": [i % 2 == 0 for i in range(len(every))],
    }
    trainer = KTOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        ref_model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=KTOConfig(beta=BETA, **trainer_options(model, gate.total)),
        train_dataset=Dataset.from_dict(columns),
        processing_class=AutoTokenizer.from_pretrained(model),
        callbacks=[GateCallback(gate)],
    )
    record_losses(trainer, gate)
    trainer.train()
