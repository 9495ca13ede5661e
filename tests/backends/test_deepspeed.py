"""DeepSpeed on gloo ranks against a plain PyTorch loop: the same losses, norms and weights at every ZeRO stage.

Process starts are the cost here, so each number of ranks is spawned once, runs every case, and the tests read what it
left behind.
"""

from __future__ import annotations

import importlib
import math
import os
import socket
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from openrlhf.backends.deepspeed_config import frozen_config, train_config
from openrlhf.config.groups import DeepSpeedConfig, ModelConfig, OptimConfig, TrainConfig
from openrlhf.models.causal_lm import CausalLM
from openrlhf.models.load import load_causal_lm
from openrlhf.models.tiny import build_model
from openrlhf.types import Batch

VOCABULARY, WIDTH, ROWS, STEPS, PEAK = 64, 12, 12, 3, 1e-3
OPTIM = OptimConfig(l2=0.1, max_norm=0.5, lr_warmup_ratio=0.3)
# Rows of each micro-batch, rank by rank: ragged, and equally many micro-batches on every rank.
SPLITS = {1: [[2, 5, 1, 4]], 2: [[1, 3, 1], [4, 1, 2]]}


@dataclass(frozen=True)
class Case:
    stage: int
    bf16: bool = False
    adam_offload: bool = False
    overlap_comm: bool = False
    grad_accum_dtype: str | None = None
    zpg: int = 1
    recompute: str = ""  # "", "reentrant" or "plain" gradient checkpointing
    tied: bool = False
    sleeps: bool = False

    def sharding(self) -> DeepSpeedConfig:
        return DeepSpeedConfig(
            zero_stage=self.stage,
            adam_offload=self.adam_offload,
            overlap_comm=self.overlap_comm,
            grad_accum_dtype=self.grad_accum_dtype,
            zpg=self.zpg,
        )


EXACT = {
    1: {
        **{f"stage {stage}": Case(stage) for stage in range(4)},
        **{f"stage {stage}, Adam on the host": Case(stage, adam_offload=True) for stage in (1, 2, 3)},
        **{f"stage {stage}, sleeping": Case(stage, sleeps=True) for stage in range(4)},
    },
    2: {
        **{f"stage {stage}": Case(stage) for stage in range(4)},
        **{f"stage {stage}, Adam on the host": Case(stage, adam_offload=True) for stage in (1, 2, 3)},
        **{f"stage {stage}, sleeping": Case(stage, sleeps=True) for stage in range(4)},
        **{f"stage {stage}, overlapped": Case(stage, overlap_comm=True) for stage in (1, 2, 3)},
        **{f"stage {stage}, recomputed": Case(stage, recompute="plain") for stage in (2, 3)},
        **{f"stage {stage}, recomputed reentrantly": Case(stage, recompute="reentrant") for stage in (2, 3)},
        **{f"stage {stage}, tied": Case(stage, tied=True) for stage in (0, 2, 3)},
        "stage 3, second partition": Case(3, zpg=2),
    },
}
BF16 = {
    2: {
        **{f"bf16 stage {stage}": Case(stage, bf16=True) for stage in range(4)},
        **{f"bf16 stage {stage}, fp32 sums": Case(stage, bf16=True, grad_accum_dtype="fp32") for stage in (1, 2, 3)},
        **{f"bf16 stage {stage}, sleeping": Case(stage, bf16=True, sleeps=True) for stage in range(4)},
    },
}
CASES = {world: {**EXACT[world], **BF16.get(world, {})} for world in SPLITS}


def load(folder: Path, bf16: bool = False, recompute: str = "") -> CausalLM:
    model = load_causal_lm(str(folder), model_config(folder, bf16, recompute))
    model.chunk_elements = 8 * VOCABULARY  # several chunks, as many as the batch has tokens for
    return model


def model_config(folder: Path, bf16: bool = False, recompute: str = "") -> ModelConfig:
    return ModelConfig(
        pretrain=str(folder),
        bf16=bf16,
        gradient_checkpointing=recompute != "",
        gradient_checkpointing_use_reentrant=recompute == "reentrant",
    )


def mini_batch(step: int) -> Batch:
    """Ragged rows; in one of the micro-batches of step 1 no token carries loss."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(3, VOCABULARY, (ROWS, WIDTH), generator=generator)
    lengths = torch.randint(4, WIDTH + 1, (ROWS, 1), generator=generator)
    attended = torch.arange(WIDTH)[None] < lengths
    action_mask = attended & (torch.arange(WIDTH)[None] >= 2)
    if step == 1:
        action_mask[7] = False  # the third micro-batch of one rank
        action_mask[9] = False  # the second micro-batch of the second of two ranks
    return Batch(tokens, attended, action_mask, loss_weights=action_mask / action_mask.sum())


def micro_batches(step: int, rank: int, world: int) -> list[Batch]:
    sizes = [size for split in SPLITS[world] for size in split]
    first = sum(len(split) for split in SPLITS[world][:rank])
    rows = torch.arange(ROWS).split(sizes)[first : first + len(SPLITS[world][rank])]
    return [mini_batch(step).select(part) for part in rows]


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    return -(model(batch).log_probs * batch.loss_weights).sum()


def reference_run(folder: Path) -> tuple[list[tuple[float, float, float]], dict[str, Tensor]]:
    """AdamW on whole mini-batches in plain PyTorch: (loss, norm, learning rate) a step, and the weights."""
    model = load(folder)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    stats = []
    for step in range(STEPS):
        # One warmup step from 0, then a cosine from the peak to 10 % of it.
        cosine = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 1) / (STEPS - 1)))
        optimizer.param_groups[0]["lr"] = PEAK * (0.0 if step == 0 else cosine)
        loss = loss_of(model, mini_batch(step))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        stats.append((loss.item(), norm.item(), optimizer.param_groups[0]["lr"]))
        optimizer.step()
        optimizer.zero_grad()
    return stats, {name: p.detach() for name, p in model.hf.named_parameters()}


def run_rank(rank: int, world: int, port: int, folder: Path) -> None:
    """Every case on one rank; rank 0 writes what happened."""
    torch.set_num_threads(1)
    if world > 1:  # one rank: as under a plain python -m, nothing in the environment
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    from openrlhf.backends.deepspeed import init_distributed

    init_distributed(timedelta(seconds=60))
    results = {name: run_case(case, rank, world, folder) for name, case in CASES[world].items()}
    frozen = {f"frozen, {stage=}, {offload=}": run_frozen(stage, offload, folder)
              for stage in (0, 3) for offload in (False, True)}
    if rank == 0:
        torch.save({**results, **frozen}, folder / f"results-{world}.pt")


def run_case(case: Case, rank: int, world: int, folder: Path) -> dict[str, Any]:
    from openrlhf.backends.deepspeed import DeepSpeedTrain

    source = folder / ("tied" if case.tied else "untied")
    engine = DeepSpeedTrain(
        lambda: load(source, case.bf16, case.recompute),
        model_config(source, case.bf16, case.recompute),
        OPTIM,
        TrainConfig(),
        case.sharding(),
        learning_rate=PEAK,
        total_steps=STEPS,
    )
    assert (engine.rank, engine.world, engine.device) == (rank, world, torch.device("cpu"))
    stats, slept = [], []
    engine.model.train()
    for step in range(STEPS):
        loss = torch.zeros(())
        parts = micro_batches(step, rank, world)
        for i, batch in enumerate(parts):
            part = loss_of(engine.model, batch)
            engine.backward(part, last=i == len(parts) - 1)
            loss += part.detach()
        done = engine.step()
        stats.append((engine.sum_over_ranks(loss).item(), done.grad_norm, done.lr))
        if case.sleeps:
            slept.append(sleep_and_wake(engine))
    weights = {name: tensor.clone() for name, tensor in engine.full_weights()}
    engine.model.destroy()
    return {"stats": stats, "weights": weights, "slept": slept}


def sleep_and_wake(engine: Any) -> tuple[bool, bool]:
    """Whether every storage was empty while asleep, and whether all came back bit for bit."""
    from openrlhf.backends.deepspeed_states import kept_tensors

    engine.model.empty_partition_cache()
    tensors = [t for t in kept_tensors(engine.model) if t.untyped_storage().resizable()]
    assert sum(t.numel() for t in tensors) > sum(p.numel() for p in engine.model.module.parameters())
    before = [t.clone() for t in tensors]
    engine.offload()
    empty = all(t.untyped_storage().nbytes() == 0 for t in tensors)
    engine.onload()
    return empty, all(torch.equal(t, old) for t, old in zip(tensors, before, strict=True))


def run_frozen(stage: int, offload: bool, folder: Path) -> Tensor:
    from openrlhf.backends.deepspeed import DeepSpeedForward

    source = folder / "untied"
    engine = DeepSpeedForward(lambda: load(source), model_config(source), stage, offload)
    engine.offload()
    engine.onload()
    with torch.no_grad():
        scores = engine.model(mini_batch(0)).log_probs.clone()
    engine.model.destroy()
    return scores


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deepspeed")
    for name in ("tied", "untied"):
        build_model(folder / name, VOCABULARY, hidden=32, intermediate=48, head_dim=16, tied=name == "tied")
    return folder


@pytest.fixture(scope="module")
def references(folder: Path) -> dict[bool, Any]:
    return {tied: reference_run(folder / ("tied" if tied else "untied")) for tied in (False, True)}


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[int, dict[str, Any]]:
    for world in SPLITS:
        mp.spawn(run_rank, args=(world, free_port(), folder), nprocs=world)
    return {world: torch.load(folder / f"results-{world}.pt", weights_only=False) for world in SPLITS}


@pytest.mark.slow
@pytest.mark.parametrize(("world", "name"), [(w, n) for w in SPLITS for n in EXACT[w]])
def test_training_equals_the_plain_loop(world: int, name: str, results: Any, references: Any) -> None:
    stats, weights = references[EXACT[world][name].tied]
    assert min(norm for _, norm, _ in stats) > OPTIM.max_norm  # clipping is at work in every step
    run = results[world][name]
    torch.testing.assert_close(torch.tensor(run["stats"]), torch.tensor(stats), rtol=1e-6, atol=1e-7)
    assert run["weights"].keys() == weights.keys()  # Hugging Face names, tied weights once
    for key, expected in weights.items():
        torch.testing.assert_close(run["weights"][key], expected, rtol=1e-6, atol=3e-7, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("name", BF16[2])
def test_bf16_follows_float32(name: str, results: Any, references: Any) -> None:
    stats, _ = references[False]
    run = results[2][name]
    torch.testing.assert_close(torch.tensor(run["stats"]), torch.tensor(stats), rtol=5e-3, atol=0)
    assert all(weight.dtype == torch.bfloat16 for weight in run["weights"].values())


@pytest.mark.slow
@pytest.mark.parametrize(("world", "name"), [(w, n) for w in SPLITS for n, case in CASES[w].items() if case.sleeps])
def test_sleep_empties_the_device_and_comes_back_bit_for_bit(world: int, name: str, results: Any) -> None:
    assert results[world][name]["slept"] == [(True, True)] * STEPS


@pytest.mark.slow
@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("world", SPLITS)
def test_a_frozen_model_scores_like_the_plain_one(
    world: int, stage: int, offload: bool, results: Any, folder: Path
) -> None:
    with torch.no_grad():
        expected = load(folder / "untied")(mini_batch(0)).log_probs
    torch.testing.assert_close(results[world][f"frozen, {stage=}, {offload=}"], expected, rtol=1e-6, atol=1e-6)
