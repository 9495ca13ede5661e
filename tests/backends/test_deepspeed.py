"""DeepSpeed on gloo ranks against a plain PyTorch loop: the same losses, norms and weights at every ZeRO stage.

Process starts are the cost here, so each number of ranks is spawned once, runs every case, and the tests read what it
left behind.
"""

from __future__ import annotations

import importlib
import math
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed import distributed_c10d
from transformers import AutoModelForCausalLM, AutoTokenizer

from openrlhf.backends import deepspeed_config
from openrlhf.backends.deepspeed_config import frozen_config, train_config
from openrlhf.config.groups import DeepSpeedConfig, ModelConfig, OptimConfig, TrainConfig
from openrlhf.models.causal_lm import CausalLM
from openrlhf.models.load import load_causal_lm, load_score_model
from openrlhf.models.tiny import build_model, build_tokenizer
from openrlhf.models.value_head import ScoreModel
from openrlhf.training.update import Poison
from openrlhf.types import Batch

VOCABULARY, WIDTH, ROWS, STEPS, PEAK = 64, 12, 12, 3, 1e-3
BETA = 0.6
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
    spoilt: bool = False  # a step whose gradient is not finite comes before each of the others
    saves_to: str = ""
    ema_beta: float | None = None

    def sharding(self) -> DeepSpeedConfig:
        return DeepSpeedConfig(
            zero_stage=self.stage,
            adam_offload=self.adam_offload,
            overlap_comm=self.overlap_comm,
            grad_accum_dtype=self.grad_accum_dtype,
            zpg=self.zpg,
        )


def on_ranks(test: Any) -> Any:
    """Reads what the spawned ranks left; the first such test waits for them."""
    return pytest.mark.slow(pytest.mark.timeout(600)(test))


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
        **{f"stage {stage}, tied": Case(stage, tied=True, saves_to=f"saved-tied-{stage}") for stage in (0, 2, 3)},
        **{
            f"stage {stage}, averaged": Case(stage, ema_beta=BETA, sleeps=stage == 3, saves_to=f"averaged-{stage}")
            for stage in (0, 2, 3)
        },
        "stage 3, saved": Case(3, saves_to="saved-3"),
        "stage 3, second partition": Case(3, zpg=2),
    },
}
BF16 = {
    2: {
        **{f"bf16 stage {stage}": Case(stage, bf16=True) for stage in range(4)},
        **{f"bf16 stage {stage}, fp32 sums": Case(stage, bf16=True, grad_accum_dtype="fp32") for stage in (1, 2, 3)},
        "bf16 stage 3, averaged": Case(3, bf16=True, ema_beta=BETA, saves_to="averaged-bf16"),
        **{f"bf16 stage {stage}, sleeping": Case(stage, bf16=True, sleeps=True) for stage in range(4)},
    },
}
# Name → the case with spoilt steps in between, which must come out the same.
SPOILT = {
    f"{name}, spoilt": replace(case, spoilt=True)
    for name, case in {**EXACT[2], **BF16[2]}.items()
    if name.endswith(("stage 0", "stage 1", "stage 2", "stage 3", "Adam on the host"))
}
CASES = {1: EXACT[1], 2: {**EXACT[2], **BF16[2], **SPOILT}}


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


def reference_run(
    folder: Path, path: list[dict[str, Tensor]] | None = None
) -> tuple[list[tuple[float, float, float]], dict[str, Tensor]]:
    """AdamW on whole mini-batches in plain PyTorch: (loss, norm, learning rate) a step, and the weights.

    ``path`` gets the weights of the start and after each step.
    """
    model = load(folder)
    path = [] if path is None else path
    path.append({name: p.detach().clone() for name, p in model.hf.named_parameters()})
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
        path.append({name: p.detach().clone() for name, p in model.hf.named_parameters()})
    return stats, path[-1]


def run_rank(rank: int, world: int, port: int, folder: Path) -> None:
    """Every case on one rank; rank 0 writes what happened."""
    torch.set_num_threads(1)
    if world > 1:  # one rank: as under a plain python -m, nothing in the environment
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    from openrlhf.backends.deepspeed import init_distributed

    init_distributed(timedelta(seconds=60))
    results = {name: run_case(case, rank, world, folder) for name, case in CASES[world].items()}
    frozen = {
        f"frozen, {stage=}, {offload=}": run_frozen(stage, offload, folder)
        for stage in (0, 3)
        for offload in (False, True)
    }
    critics = {
        f"critic, {stage=}": run_critic(stage, rank, folder / f"critic-{world}-{stage}", folder) for stage in (2, 3)
    }
    groups = list(distributed_c10d._world.pg_map)
    waits = {"waits": [group._get_backend(torch.device("cpu")).options._timeout for group in groups]}
    if rank == 0:
        torch.save({**results, **frozen, **critics, **waits}, folder / f"results-{world}.pt")


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
        ema_beta=case.ema_beta,
    )
    assert (engine.rank, engine.world, engine.device) == (rank, world, torch.device("cpu"))
    stats, slept, skipped = [], [], []
    engine.model.train()
    for step in range(STEPS):
        if case.spoilt:
            skipped.append(spoilt_step(engine, step, rank, world))
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
    if case.ema_beta is not None:
        forget_the_average(engine, world)
    buffers = dict(engine.model.module.named_buffers())
    if case.saves_to:
        engine.save(folder / f"{case.saves_to}-{world}", AutoTokenizer.from_pretrained(folder / "tokenizer"))
    weights = {name: tensor.clone() for name, tensor in engine.full_weights()}
    engine.model.destroy()
    return {"stats": stats, "weights": weights, "slept": slept, "skipped": skipped, "buffers": buffers}


def spoilt_step(engine: Any, step: int, rank: int, world: int) -> list[bool]:
    """On the last rank alone the loss of the first micro-batch is NaN or infinite, with a gradient of zero, or its
    gradient is infinite. Whether each rank left the step out."""
    parts, poison = micro_batches(step, rank, world), Poison()
    hook = engine.model.register_forward_hook(poison.watch)
    for i, batch in enumerate(parts):
        log_probs = engine.model(batch).log_probs
        if rank == world - 1 and i == 0 and step == 0:
            log_probs.register_hook(lambda gradient: gradient * math.inf)
        loss = -(log_probs * batch.loss_weights).sum()
        if rank == world - 1 and i == 0 and step > 0:
            bad = torch.tensor(math.nan if step == 1 else math.inf)
            loss = torch.where(torch.tensor(True), bad, loss)
        poison.judge(loss)
        engine.backward(loss, last=i == len(parts) - 1)
    hook.remove()
    skipped = torch.zeros(world)
    skipped[rank] = engine.step().skipped
    return [bool(each) for each in engine.sum_over_ranks(skipped)]


def forget_the_average(engine: Any, world: int) -> None:
    """And find it again in the states of all ranks."""
    states: list[Any] = [None] * world
    torch.distributed.all_gather_object(states, engine.state())
    for piece in engine.average.pieces:
        piece.flat.zero_()
    engine.load_state(states)


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
    engine = DeepSpeedForward(lambda: load(source), model_config(source), DeepSpeedConfig(zero_stage=stage), offload)
    engine.offload()
    engine.onload()
    with torch.no_grad():
        scores = engine.model(mini_batch(0)).log_probs.clone()
    engine.model.destroy()
    return scores


def run_critic(stage: int, rank: int, saved: Path, folder: Path) -> Tensor:
    """A critic with a fresh head, drawn differently on each rank, trained for a step and saved. Returns its values."""
    from openrlhf.backends.deepspeed import DeepSpeedTrain

    torch.manual_seed(rank)
    source = folder / "untied"
    engine = DeepSpeedTrain(
        lambda: load_score_model(str(source), model_config(source), "value_head", new_head=True),
        model_config(source),
        OPTIM,
        TrainConfig(),
        DeepSpeedConfig(zero_stage=stage),
        learning_rate=PEAK,
        total_steps=STEPS,
    )
    for _ in range(2):  # the first step has learning rate 0
        engine.backward(engine.model(mini_batch(0), "values").square().sum() / engine.world, last=True)
        engine.step()
    engine.save(saved, AutoTokenizer.from_pretrained(folder / "tokenizer"))
    with torch.no_grad():
        values = engine.model(mini_batch(0), "values").clone()
    # sum of squares - square of sums / ranks: zero only when every rank has the same values
    spread = engine.sum_over_ranks(values.square()) - engine.sum_over_ranks(values).square() / engine.world
    assert spread.abs().max() < 1e-6
    engine.model.destroy()
    return values


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp("deepspeed")
    build_tokenizer(folder / "tokenizer")
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


@on_ranks
@pytest.mark.parametrize(("world", "name"), [(w, n) for w in SPLITS for n in EXACT[w]])
def test_training_equals_the_plain_loop(world: int, name: str, results: Any, references: Any) -> None:
    stats, weights = references[EXACT[world][name].tied]
    assert min(norm for _, norm, _ in stats) > OPTIM.max_norm  # clipping is at work in every step
    run = results[world][name]
    torch.testing.assert_close(torch.tensor(run["stats"]), torch.tensor(stats), rtol=1e-6, atol=1e-7)
    assert run["weights"].keys() == weights.keys()  # Hugging Face names, tied weights once
    for key, expected in weights.items():
        torch.testing.assert_close(run["weights"][key], expected, rtol=1e-6, atol=3e-7, msg=key)


@on_ranks
def test_no_group_waits_longer_than_the_flag_says(results: Any) -> None:
    """DeepSpeed makes some beside the first."""
    assert len(results[2]["waits"]) > 1
    assert {*results[1]["waits"], *results[2]["waits"]} == {timedelta(seconds=DeepSpeedConfig().deadline)}


@on_ranks
@pytest.mark.parametrize("name", SPOILT)
def test_a_gradient_that_is_not_finite_on_one_rank_changes_nothing_on_any(name: str, results: Any) -> None:
    """Losses, norms, learning rates and weights are bit for bit those of the run without the spoilt steps."""
    spoilt, clean = results[2][name], results[2][name.removesuffix(", spoilt")]
    assert spoilt["skipped"] == [[True, True]] * STEPS
    assert spoilt["stats"] == clean["stats"]
    torch.testing.assert_close(spoilt["weights"], clean["weights"], rtol=0, atol=0)


@on_ranks
@pytest.mark.parametrize("name", BF16[2])
def test_bf16_follows_float32(name: str, results: Any, references: Any) -> None:
    stats, _ = references[False]
    run = results[2][name]
    torch.testing.assert_close(torch.tensor(run["stats"]), torch.tensor(stats), rtol=5e-3, atol=0)
    assert all(weight.dtype == torch.bfloat16 for weight in run["weights"].values())


@on_ranks
@pytest.mark.parametrize(("world", "name"), [(w, n) for w in SPLITS for n, case in CASES[w].items() if case.sleeps])
def test_sleep_empties_the_device_and_comes_back_bit_for_bit(world: int, name: str, results: Any) -> None:
    assert results[world][name]["slept"] == [(True, True)] * STEPS


@on_ranks
@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("world", SPLITS)
def test_a_frozen_model_scores_like_the_plain_one(
    world: int, stage: int, offload: bool, results: Any, folder: Path
) -> None:
    with torch.no_grad():
        expected = load(folder / "untied")(mini_batch(0)).log_probs
    torch.testing.assert_close(results[world][f"frozen, {stage=}, {offload=}"], expected, rtol=1e-6, atol=1e-6)


@on_ranks
@pytest.mark.parametrize("name", [name for name, case in BF16[2].items() if case.stage == 3])
def test_sharding_does_not_round_the_rotary_frequencies(name: str, results: Any, folder: Path) -> None:
    expected = dict(load(folder / "untied", bf16=True).named_buffers())
    buffers = results[2][name]["buffers"]
    assert expected
    torch.testing.assert_close(buffers, expected, rtol=0, atol=0)


@on_ranks
@pytest.mark.parametrize("name", [name for name, case in EXACT[2].items() if case.saves_to and not case.ema_beta])
def test_save_writes_what_transformers_loads(name: str, results: Any, folder: Path) -> None:
    saved = folder / f"{EXACT[2][name].saves_to}-2"
    model, report = AutoModelForCausalLM.from_pretrained(saved, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(dict(model.named_parameters()), results[2][name]["weights"], rtol=0, atol=0)
    assert AutoTokenizer.from_pretrained(saved).encode("abc")


@on_ranks
@pytest.mark.parametrize("name", [name for name, case in CASES[2].items() if case.ema_beta])
def test_what_is_saved_is_the_moving_average(name: str, folder: Path, results: Any) -> None:
    """β³·w₀ + (1 − β)·(β²·w₁ + β·w₂ + w₃), from the weights after each step of the plain loop."""
    path: list[dict[str, Tensor]] = []
    reference_run(folder / "untied", path)
    shares = [BETA**3, *((1 - BETA) * BETA ** (STEPS - step) for step in range(1, STEPS + 1))]
    case = CASES[2][name]
    saved = dict(AutoModelForCausalLM.from_pretrained(folder / f"{case.saves_to}-2").named_parameters())
    assert saved.keys() == path[0].keys()
    near = {"rtol": 1e-2, "atol": 2e-3} if case.bf16 else {"rtol": 1e-6, "atol": 5e-7}
    for key in saved:
        expected = sum(share * weights[key].double() for share, weights in zip(shares, path, strict=True))
        torch.testing.assert_close(saved[key].detach().double(), expected, **near, msg=key)
        if not case.bf16:
            assert not torch.equal(saved[key], results[2][name]["weights"][key])


@on_ranks
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("world", SPLITS)
def test_a_critic_with_a_new_head_trains_and_saves(world: int, stage: int, results: Any, folder: Path) -> None:
    saved = str(folder / f"critic-{world}-{stage}")
    critic: ScoreModel = load_score_model(saved, model_config(Path(saved)), "value_head")
    with torch.no_grad():
        values = critic(mini_batch(0), "values")
    assert values.abs().max() > 0
    torch.testing.assert_close(results[world][f"critic, {stage=}"], values, rtol=1e-6, atol=1e-6)


MODEL = ModelConfig(pretrain="model")


def test_train_config_says_what_the_flags_say() -> None:
    sharding = DeepSpeedConfig(zero_stage=3, zpg=8, adam_offload=True, overlap_comm=True, grad_accum_dtype="fp32")
    bf16 = ModelConfig(pretrain="model", bf16=True)
    assert train_config(bf16, OptimConfig(max_norm=0.7), TrainConfig(micro_train_batch_size=2), sharding) == {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.7,
        "bf16": {"enabled": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": None,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": True,
            "zero_hpz_partition_size": 8,
            "offload_optimizer": {"device": "cpu", "pin_memory": True},
        },
    }


@pytest.mark.parametrize(
    ("stage", "offload", "expected"),
    [(0, False, (0, "none")), (2, False, (0, "none")), (3, False, (3, "none")), (2, True, (3, "cpu"))],
)
def test_a_frozen_model_is_sharded_at_stage_3_or_to_wait_on_the_host(
    stage: int, offload: bool, expected: tuple[int, str]
) -> None:
    zero = frozen_config(bf16=True, zero_stage=stage, offload=offload)["zero_optimization"]
    assert (zero["stage"], zero["offload_param"]["device"]) == expected


@pytest.mark.parametrize(
    ("sharding", "flag"),
    [
        (DeepSpeedConfig(zero_stage=4), "--zero_stage is 4"),
        (DeepSpeedConfig(zero_stage=0, adam_offload=True), "--adam_offload"),
        (DeepSpeedConfig(zero_stage=2, zpg=8), "--zpg 8"),
        (DeepSpeedConfig(zero_stage=0, grad_accum_dtype="fp32"), "--grad_accum_dtype"),
    ],
)
def test_flags_that_the_stage_has_not_are_refused(sharding: DeepSpeedConfig, flag: str) -> None:
    with pytest.raises(ValueError, match=flag):
        train_config(MODEL, OptimConfig(), TrainConfig(), sharding)


@pytest.mark.parametrize(
    ("model", "sharding", "words"),
    [
        (MODEL, DeepSpeedConfig(zero_stage=0, deepcompile=True), "--zero_stage 1, 2 or 3"),
        (MODEL, DeepSpeedConfig(ds_tensor_parallel_size=2, deepcompile=True), "--ds_tensor_parallel_size"),
        (replace(MODEL, ring_attn_size=2), DeepSpeedConfig(deepcompile=True), "--ring_attn_size"),
    ],
)
def test_what_cannot_be_compiled_is_refused(model: ModelConfig, sharding: DeepSpeedConfig, words: str) -> None:
    with pytest.raises(ValueError, match=f"--deepcompile.*{words}"):
        train_config(model, OptimConfig(), TrainConfig(), sharding)


def test_compiling_needs_a_gpu_and_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    sharding = DeepSpeedConfig(deepcompile=True)
    for gpu, toolkit in ((False, "/cuda"), (True, None)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        monkeypatch.setattr(deepspeed_config, "CUDA_HOME", toolkit)
        with pytest.raises(ValueError, match="--deepcompile builds CUDA code"):
            train_config(MODEL, OptimConfig(), TrainConfig(), sharding)
    monkeypatch.setattr(deepspeed_config, "CUDA_HOME", "/cuda")
    assert train_config(MODEL, OptimConfig(), TrainConfig(), sharding)["compile"] == {"deepcompile": True}


def test_a_missing_deepspeed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    monkeypatch.delitem(sys.modules, "openrlhf.backends.deepspeed", raising=False)
    with pytest.raises(ImportError, match=r'pip install "openrlhf\[deepspeed\]"'):
        importlib.import_module("openrlhf.backends.deepspeed")


@pytest.mark.slow
def test_versions_are_compared_as_numbers() -> None:
    pytest.importorskip("deepspeed")
    from openrlhf.backends.deepspeed import check_version

    check_version("0.19.8")
    check_version("0.100.0")
    with pytest.raises(ImportError, match="too old"):
        check_version("0.9.5")


LEAVES = """
import atexit, datetime
import torch.distributed as dist
from openrlhf.backends.deepspeed import init_distributed
atexit.register(lambda: print("at the end:", dist.is_initialized()))  # registered first, so called last
init_distributed(datetime.timedelta(seconds=60))
{then}
"""


@pytest.mark.slow
@pytest.mark.parametrize(("then", "still_there"), [("print('done')", "False"), ("raise OSError", "True")])
def test_a_process_leaves_its_group_before_the_interpreter_ends(then: str, still_there: str) -> None:
    """gloo's threads, when they outlive the interpreter, end a run that went well with SIGABRT."""
    pytest.importorskip("deepspeed")
    done = subprocess.run([sys.executable, "-c", LEAVES.format(then=then)], capture_output=True, text=True, timeout=120)
    assert f"at the end: {still_there}" in done.stdout, done.stderr
