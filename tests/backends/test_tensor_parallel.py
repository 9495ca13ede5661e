"""AutoTP on gloo ranks, two to a model, against the plain PyTorch loop: the same losses, norms and whole weights.

DeepSpeed keeps its groups for the life of a process, so these ranks run nothing else.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from openrlhf.config.groups import DeepSpeedConfig, TrainConfig
from openrlhf.models.load import load_score_model
from openrlhf.models.tiny import build_model, build_tokenizer
from tests.backends.test_deepspeed import (
    OPTIM,
    PEAK,
    STEPS,
    VOCABULARY,
    free_port,
    load,
    loss_of,
    micro_batches,
    mini_batch,
    model_config,
    reference_run,
)

WORLD, TENSOR = 4, 2  # two data-parallel ranks of two processes each


@dataclass(frozen=True)
class Case:
    model: str
    stage: int
    bf16: bool = False
    recompute: str = ""
    adam_offload: bool = False


EXACT = {
    **{f"stage {stage}": Case("untied", stage) for stage in range(4)},
    "tied, recomputed, Adam on the host": Case("tied", 2, recompute="plain", adam_offload=True),
    "biases": Case("biases", 1),
}
BF16 = {f"bf16 stage {stage}": Case("untied", stage, bf16=True) for stage in (0, 2, 3)}
CASES = {**EXACT, **BF16}


def run_rank(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(WORLD), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    from openrlhf.backends.deepspeed import init_distributed

    init_distributed(timedelta(seconds=60))
    results = {name: run_case(name, case, folder) for name, case in CASES.items()}
    judged = {f"critic, {stage=}": run_critic(stage, rank, folder) for stage in (2, 3)}
    frozen = {f"frozen, {stage=}": run_frozen(stage, folder) for stage in (2, 3)}
    if rank == 0:
        torch.save({**results, **judged, **frozen}, folder / "results.pt")


def run_case(name: str, case: Case, folder: Path) -> dict[str, Any]:
    from openrlhf.backends.deepspeed import DeepSpeedTrain

    source = folder / case.model
    engine = DeepSpeedTrain(
        lambda: load(source, case.bf16, case.recompute),
        model_config(source, case.bf16, case.recompute),
        OPTIM,
        TrainConfig(),
        DeepSpeedConfig(zero_stage=case.stage, adam_offload=case.adam_offload, ds_tensor_parallel_size=TENSOR),
        learning_rate=PEAK,
        total_steps=STEPS,
    )
    assert engine.world == WORLD // TENSOR
    stats = []
    engine.model.train()
    for step in range(STEPS):
        loss = torch.zeros(())
        parts = micro_batches(step, engine.rank, engine.world)
        for i, batch in enumerate(parts):
            part = loss_of(engine.model, batch)
            engine.backward(part, last=i == len(parts) - 1)
            loss += part.detach()
        done = engine.step()
        stats.append((engine.sum_over_ranks(loss).item(), done.grad_norm, done.lr))
    weights = {name: tensor.clone() for name, tensor in engine.full_weights()}
    engine.save(folder / f"saved {name}", AutoTokenizer.from_pretrained(folder / "tokenizer"))
    engine.model.destroy()
    return {"stats": stats, "weights": weights}


def run_critic(stage: int, rank: int, folder: Path) -> Tensor:
    """A critic with a fresh head, which every rank would draw differently, trained for a step and saved."""
    from openrlhf.backends.deepspeed import DeepSpeedTrain

    torch.manual_seed(rank)
    source = folder / "untied"
    engine = DeepSpeedTrain(
        lambda: load_score_model(str(source), model_config(source), "value_head", new_head=True),
        model_config(source),
        OPTIM,
        TrainConfig(),
        DeepSpeedConfig(zero_stage=stage, ds_tensor_parallel_size=TENSOR),
        learning_rate=PEAK,
        total_steps=STEPS,
    )
    for _ in range(2):  # the first step has learning rate 0
        engine.backward(engine.model(mini_batch(0), "values").square().sum() / engine.world, last=True)
        engine.step()
    engine.save(folder / f"critic {stage}", AutoTokenizer.from_pretrained(folder / "tokenizer"))
    with torch.no_grad():
        values = engine.model(mini_batch(0), "values").clone()
    everywhere = [torch.empty_like(values) for _ in range(WORLD)]
    dist.all_gather(everywhere, values)
    engine.model.destroy()
    return torch.stack(everywhere)


def run_frozen(stage: int, folder: Path) -> Tensor:
    from openrlhf.backends.deepspeed import DeepSpeedForward

    source = folder / "untied"
    sharding = DeepSpeedConfig(zero_stage=stage, ds_tensor_parallel_size=TENSOR)
    engine = DeepSpeedForward(lambda: load(source), model_config(source), sharding, offload=stage == 3)
    with torch.no_grad():
        scores = engine.model(mini_batch(0)).log_probs.clone()
    engine.model.destroy()
    return scores


def build_biased(folder: Path) -> None:
    """A Qwen2, whose projections have biases."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp("tensor-parallel")
    build_tokenizer(folder / "tokenizer")
    sizes = {"hidden": 32, "intermediate": 48, "head_dim": 8, "heads": 4, "kv_heads": 2}
    for name in ("tied", "untied"):
        build_model(folder / name, VOCABULARY, **sizes, tied=name == "tied")
    build_biased(folder / "biases")
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    mp.spawn(run_rank, args=(free_port(), folder), nprocs=WORLD)
    return torch.load(folder / "results.pt", weights_only=False)


@pytest.fixture(scope="module")
def references(folder: Path) -> dict[str, Any]:
    return {name: reference_run(folder / name) for name in ("untied", "tied", "biases")}


def on_ranks(test: Any) -> Any:
    """Reads what the spawned ranks left; the first such test waits for them."""
    return pytest.mark.cluster(pytest.mark.slow(test))


@on_ranks
@pytest.mark.parametrize("name", EXACT)
def test_two_ranks_a_model_train_as_one(name: str, results: Any, references: Any) -> None:
    stats, weights = references[EXACT[name].model]
    assert min(norm for _, norm, _ in stats) > OPTIM.max_norm  # clipping is at work in every step
    run = results[name]
    torch.testing.assert_close(torch.tensor(run["stats"]), torch.tensor(stats), rtol=1e-6, atol=1e-7)
    assert run["weights"].keys() == weights.keys()
    for key, expected in weights.items():
        # Attention does not feel the keys' biases: of a gradient of nothing but rounding Adam makes small steps.
        tolerance = 1e-5 if EXACT[name].model == "biases" else 5e-7
        torch.testing.assert_close(run["weights"][key], expected, rtol=1e-6, atol=tolerance, msg=key)


@on_ranks
@pytest.mark.parametrize("name", BF16)
def test_bf16_follows_float32(name: str, results: Any, references: Any) -> None:
    stats, _ = references["untied"]
    torch.testing.assert_close(torch.tensor(results[name]["stats"]), torch.tensor(stats), rtol=5e-3, atol=0)
    assert all(weight.dtype == torch.bfloat16 for weight in results[name]["weights"].values())


@on_ranks
@pytest.mark.parametrize("name", CASES)
def test_the_saved_folder_holds_whole_weights(name: str, results: Any, folder: Path) -> None:
    model, report = AutoModelForCausalLM.from_pretrained(folder / f"saved {name}", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(dict(model.named_parameters()), results[name]["weights"], rtol=0, atol=0)


@on_ranks
@pytest.mark.parametrize("stage", [2, 3])
def test_a_new_head_is_the_same_on_every_rank(stage: int, results: Any, folder: Path) -> None:
    saved = str(folder / f"critic {stage}")
    with torch.no_grad():
        values = load_score_model(saved, model_config(Path(saved)), "value_head")(mini_batch(0), "values")
    assert values.abs().max() > 0
    for found in results[f"critic, {stage=}"]:
        torch.testing.assert_close(found, values, rtol=1e-6, atol=1e-6)


@on_ranks
@pytest.mark.parametrize("stage", [2, 3])
def test_a_frozen_model_scores_like_the_plain_one(stage: int, results: Any, folder: Path) -> None:
    with torch.no_grad():
        expected = load(folder / "untied")(mini_batch(0)).log_probs
    torch.testing.assert_close(results[f"frozen, {stage=}"], expected, rtol=1e-6, atol=1e-6)
