"""Adapters and master weights on DeepSpeed with two gloo ranks, against plain torch in one process."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from openrlhf.backends.local import LocalTrain
from openrlhf.backends.shared import SharedForward
from openrlhf.config.groups import DeepSpeedConfig, ModelConfig, OptimConfig, TrainConfig
from openrlhf.models.adapters import with_adapter
from openrlhf.models.load import load_causal_lm, load_score_model
from openrlhf.models.tiny import build_model, build_tokenizer
from openrlhf.types import Batch
from tests.recipes.helpers import free_port

VOCABULARY, WIDTH, ROWS, STEPS = 64, 12, 8, 3
OPTIM = OptimConfig(lr_scheduler="constant", lr_warmup_ratio=0.0)
STEP, UPDATES = 4.5e-5, 100  # 4.5e-3 together; near 1 a bfloat16 cannot be moved by less than 2e-3 at once
STAGES = [0, 2, 3]
KINDS = ["policy", "scorer"]


def settings(folder: Path, kind: str, bf16: bool = False) -> ModelConfig:
    # The tied head has an adapter too, so that it runs a few tokens at a time.
    targets = ("q_proj", "down_proj", "lm_head") if kind == "policy" else ("all-linear",)
    return ModelConfig(pretrain=str(folder), bf16=bf16, lora_rank=4, target_modules=targets)


def build(folder: Path, kind: str) -> Any:
    torch.manual_seed(0)
    config = settings(folder, kind)
    if kind == "scorer":
        return with_adapter(load_score_model(str(folder), config, "score", new_head=True), config)
    model = with_adapter(load_causal_lm(str(folder), config), config)
    model.chunk_elements = 2 * VOCABULARY
    return model


def mini_batch(step: int) -> Batch:
    """Ragged rows: the two ranks' heads run a different number of times."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(3, VOCABULARY, (ROWS, WIDTH), generator=generator)
    lengths = torch.tensor([12, 3, 11, 2, 12, 4, 9, 2])[:, None]
    attended = torch.arange(WIDTH)[None] < lengths
    return Batch(tokens, attended, attended & (torch.arange(WIDTH)[None] >= 1))


def train(engine: Any, kind: str) -> list[float]:
    """Losses of the whole mini-batch, and at last the start's score of the first."""
    losses = []
    engine.model.train()
    for step in range(STEPS):
        batch = mini_batch(step)
        rows = batch.select(range(engine.rank, ROWS, engine.world))
        out = engine.model(rows)
        loss = -out.log_probs.sum() / batch.action_mask.sum() if kind == "policy" else out.square().sum() / ROWS
        engine.backward(loss, last=True)
        engine.step()
        losses.append(engine.sum_over_ranks(loss.detach()).item())
    with torch.no_grad():
        start = SharedForward(engine).model.eval()(mini_batch(0))
    return [*losses, (start.log_probs if kind == "policy" else start).sum().item()]


def run_rank(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    from openrlhf.backends.deepspeed import DeepSpeedTrain

    results: dict[str, Any] = {}
    for kind in KINDS:
        engine = DeepSpeedTrain(
            lambda kind=kind: build(folder / "model", kind),
            settings(folder / "model", kind),
            OPTIM,
            TrainConfig(),
            DeepSpeedConfig(zero_stage=3),
            learning_rate=1e-2,
            total_steps=STEPS,
        )
        results[kind] = train(engine, kind)
        engine.save(folder / f"{kind}-2", AutoTokenizer.from_pretrained(folder / "model"))
        engine.model.destroy()
    for stage in STAGES:
        config = ModelConfig(pretrain=str(folder / "model"), bf16=True)
        engine = DeepSpeedTrain(
            lambda config=config: load_causal_lm(config.pretrain, config), config, OPTIM, TrainConfig(),
            DeepSpeedConfig(zero_stage=stage), learning_rate=STEP, total_steps=UPDATES,
        )  # fmt: skip
        results[f"small steps, stage {stage}"] = small_steps(engine)
        engine.model.destroy()
        adapter = replace(config, bf16=False, lora_rank=4, target_modules=("q_proj", "down_proj"))
        engine = DeepSpeedTrain(
            lambda config=adapter: with_adapter(load_causal_lm(config.pretrain, config), config), adapter, OPTIM,
            TrainConfig(), DeepSpeedConfig(zero_stage=stage), learning_rate=1e-2, total_steps=STEPS,
        )  # fmt: skip
        results[f"merges, stage {stage}"] = merges(engine)
        engine.save(folder / f"merged-{stage}", AutoTokenizer.from_pretrained(folder / "model"))
        engine.model.destroy()
    if rank == 0:
        torch.save(results, folder / "results.pt")


def merges(engine: Any) -> dict[str, Any]:
    """The first and the last of a hundred, and what the model says before and after them."""
    train(engine, "policy")
    engine.model.eval()

    def scores() -> list[torch.Tensor]:
        with torch.no_grad():
            both = engine.model(mini_batch(0)), SharedForward(engine).model(mini_batch(0))
        return [model.log_probs for model in both]

    before = scores()
    first = {name: weight.clone() for name, weight in engine.full_weights()}
    for _ in range(99):
        last = {name: weight.clone() for name, weight in engine.full_weights()}
    return {"first": first, "last": last, "before": before, "after": scores()}


def small_steps(engine: Any) -> torch.Tensor:
    """The weights of the final norm, which begin at 1, after many steps that are each too small for bfloat16."""
    batch = mini_batch(0).select([1])
    for _ in range(UPDATES):
        engine.backward(engine.model(batch).log_probs.sum() / engine.world, last=True)
        engine.step()
    return {name: weight.clone() for name, weight in engine.full_weights()}["model.norm.weight"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp("adapters")
    build_tokenizer(folder / "model")
    build_model(folder / "model", VOCABULARY, hidden=32, intermediate=48, head_dim=16, tied=True)
    mp.spawn(run_rank, args=(int(free_port()), folder), nprocs=2)
    return folder


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
def test_zero_3_trains_and_saves_the_adapter_that_one_process_does(folder: Path, tmp_path: Path, kind: str) -> None:
    engine = LocalTrain(build(folder / "model", kind), OPTIM, 1e-2, STEPS)
    expected = train(engine, kind)
    results = torch.load(folder / "results.pt")
    assert results[kind] == pytest.approx(expected, rel=1e-5)
    auto = AutoModelForCausalLM if kind == "policy" else AutoModelForSequenceClassification
    base = auto.from_pretrained(folder / "model", **({} if kind == "policy" else {"num_labels": 1}))
    loaded = PeftModel.from_pretrained(base, folder / f"{kind}-2").eval()
    tokens = mini_batch(0).tokens[:1]
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, engine.model.eval().hf(tokens).logits, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(600)
@pytest.mark.parametrize("stage", STAGES)
def test_merged_weights_are_those_of_peft_and_a_hundred_merges_change_no_bit(folder: Path, stage: int) -> None:
    result = torch.load(folder / "results.pt")[f"merges, stage {stage}"]
    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    plain = {name: weight.clone() for name, weight in base.state_dict().items() if name != "lm_head.weight"}  # tied
    expected = PeftModel.from_pretrained(base, folder / f"merged-{stage}").merge_and_unload().state_dict()
    assert result["first"].keys() == plain.keys()
    for name, weight in result["first"].items():
        assert torch.equal(weight, result["last"][name])
        if "q_proj" in name or "down_proj" in name:
            torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)
            assert float((weight - plain[name]).abs().max()) > 1e-3
        else:
            assert torch.equal(weight, plain[name])
    for before, after in zip(result["before"], result["after"], strict=True):
        assert torch.equal(before, after)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(600)
@pytest.mark.parametrize("stage", STAGES)
def test_steps_too_small_for_bfloat16_add_up(folder: Path, stage: int) -> None:
    weight = torch.load(folder / "results.pt")[f"small steps, stage {stage}"]
    assert weight.dtype == torch.bfloat16
    assert float(weight.ne(1).float().mean()) > 0.3  # none without float32 masters; of some the gradient turns around


def test_in_one_process_a_thousand_steps_of_a_millionth_move_a_weight(tmp_path: Path) -> None:
    build_model(tmp_path, VOCABULARY, hidden=16, layers=1, heads=1, head_dim=16, intermediate=16)
    config = ModelConfig(pretrain=str(tmp_path), bf16=True)
    engine = LocalTrain(load_causal_lm(str(tmp_path), config), OPTIM, 1e-6, 1000, bf16=True)
    weight = engine.model.hf.model.norm.weight
    assert weight.detach().eq(1).all()
    for _ in range(1000):
        engine.backward(weight.sum(), last=True)
        engine.step()
    torch.testing.assert_close(weight.detach(), torch.full((16,), 1 - 1e-3), rtol=0, atol=3e-5)
