"""Plain torch in one process: the optimizer step, mixed precision, what it saves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from openrlhf.backends.choose import choose_train_engine
from openrlhf.backends.local import LocalForward, LocalTrain
from openrlhf.config.groups import DeepSpeedConfig, ModelConfig, OptimConfig, TrainConfig
from openrlhf.config.rules.training import SCHEDULERS
from openrlhf.models.causal_lm import CausalLM
from openrlhf.models.load import load_causal_lm, load_tokenizer
from tests.models.helpers import build, make_batch


def engine(optim: OptimConfig, learning_rate: float = 0.1, steps: int = 10, bf16: bool = False) -> LocalTrain:
    return LocalTrain(
        CausalLM(build(dtype=torch.bfloat16 if bf16 else torch.float64)), optim, learning_rate, steps, bf16
    )


def take_a_step(trained: LocalTrain) -> float:
    loss = -trained.model(make_batch()).log_probs.mean()
    trained.backward(loss, last=True)
    return trained.step().grad_norm


def test_adamw_decays_weights_as_its_paper_says() -> None:
    """arXiv:1711.05101: without a gradient a weight shrinks by lr · decay."""
    trained = engine(OptimConfig(l2=0.5, lr_warmup_ratio=0, lr_scheduler="constant"))
    before = trained.model.hf.lm_head.weight.detach().clone()
    trained.backward(trained.model.hf.lm_head.weight.sum() * 0, last=True)
    trained.step()
    torch.testing.assert_close(trained.model.hf.lm_head.weight.detach(), before * (1 - 0.1 * 0.5))


@pytest.mark.parametrize(("max_norm", "clipped"), [(1e-3, True), (0.0, False), (1e9, False)])
def test_the_reported_norm_is_that_before_clipping_and_0_never_clips(max_norm: float, clipped: bool) -> None:
    trained = engine(OptimConfig(max_norm=max_norm, lr_warmup_ratio=0))
    seen = []
    trained.optimizer.register_step_pre_hook(lambda *call: seen.append(norm_of_gradient(trained)))
    reported = take_a_step(trained)
    assert reported > 0.01
    assert seen[0] == pytest.approx(max_norm if clipped else reported, rel=1e-3)


def norm_of_gradient(trained: LocalTrain) -> float:
    return math.sqrt(sum(float(p.grad.square().sum()) for p in trained.parameters if p.grad is not None))


@pytest.mark.parametrize("factor", [math.nan, math.inf])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_gradient_that_is_not_finite_changes_nothing(factor: float, bf16: bool) -> None:
    """Between two steps it leaves weights, moments and schedule bit for bit, and the third step is the second."""
    states = []
    for spoilt in (False, True):
        trained = engine(OptimConfig(lr_warmup_ratio=0), bf16=bf16)
        take_a_step(trained)
        if spoilt:
            before = trained.state()
            trained.backward(-trained.model(make_batch()).log_probs.mean() * factor, last=True)
            assert trained.step().skipped
            assert_same_bits(trained.state(), before)
        take_a_step(trained)
        states.append(trained.state())
    assert_same_bits(states[1], states[0])


def assert_same_bits(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert expected["pieces"] and got["schedule"] == expected["schedule"]
    torch.testing.assert_close(got["pieces"], expected["pieces"], rtol=0, atol=0)


def test_gradients_do_not_leak_into_the_next_step() -> None:
    trained = engine(OptimConfig(lr_warmup_ratio=0), learning_rate=0.0)
    assert take_a_step(trained) == pytest.approx(take_a_step(trained))


@pytest.mark.parametrize("scheduler", ["cosine_with_min_lr", "cosine", "linear", "constant", "constant_with_warmup"])
def test_schedules_warm_up_and_end_where_they_should(scheduler: str) -> None:
    trained = engine(OptimConfig(lr_scheduler=scheduler, lr_warmup_ratio=0.15), steps=20)
    rates = []
    for _ in range(20):
        trained.backward(sum(p.sum() for p in trained.parameters) * 0, last=True)
        rates.append(trained.step().lr)
    if scheduler != "constant":
        assert rates[:4] == pytest.approx([0, 0.1 / 3, 0.2 / 3, 0.1])  # three steps: ceil(20 · 0.15)
    end = {"cosine_with_min_lr": 0.01, "cosine": 0.0, "linear": 0.0}.get(scheduler, 0.1)
    assert trained.scheduler.get_last_lr()[0] == pytest.approx(end, abs=1e-12)


def test_a_learning_rate_of_zero_trains_nothing() -> None:
    trained = engine(OptimConfig(lr_warmup_ratio=0), learning_rate=0.0)
    before = trained.model.hf.lm_head.weight.detach().clone()
    take_a_step(trained)
    assert torch.equal(trained.model.hf.lm_head.weight, before)


def test_small_steps_add_up_under_bf16() -> None:
    """A step of 1e-6 is lost on a bfloat16 weight near 1; the master weights are float32."""
    trained = engine(OptimConfig(lr_scheduler="constant"), learning_rate=1e-6, bf16=True)
    weight = trained.model.hf.model.norm.weight
    before = weight.detach().clone()
    assert float(before.mean()) == pytest.approx(1.0)
    for _ in range(100):
        trained.backward(weight.sum(), last=True)
        trained.step()
    torch.testing.assert_close(before - weight.detach(), torch.full_like(before, 1e-4), rtol=0.05, atol=0)


def test_bf16_computes_in_bfloat16() -> None:
    trained = engine(OptimConfig(), bf16=True)
    seen = []
    trained.model.hf.model.layers[0].mlp.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    scores = trained.model(make_batch())
    assert seen == [torch.bfloat16]
    assert scores.log_probs.dtype == torch.float32
    exact = CausalLM(build(dtype=torch.float32))(make_batch()).log_probs
    assert 0 < float((scores.log_probs - exact).detach().abs().max()) < 0.5


@pytest.mark.parametrize("bf16", [False, True])
def test_the_saved_folder_holds_the_trained_weights(tiny_folder: Path, tmp_path: Path, bf16: bool) -> None:
    config = ModelConfig(pretrain=str(tiny_folder), bf16=bf16)
    trained = LocalTrain(load_causal_lm(str(tiny_folder), config), OptimConfig(lr_warmup_ratio=0), 1e-2, 10, bf16)
    take_a_step(trained)
    trained.save(tmp_path, load_tokenizer(str(tiny_folder), config))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    expected = trained.model.hf.state_dict()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_full_weights_have_the_names_that_transformers_uses() -> None:
    trained = engine(OptimConfig())
    assert [name for name, _ in trained.full_weights()] == list(build().state_dict())


def test_a_frozen_model_has_no_gradients_and_is_in_eval_mode() -> None:
    frozen = LocalForward(CausalLM(build()))
    assert not frozen.model.training
    assert not frozen.model(make_batch()).log_probs.requires_grad


def test_offload_and_onload_keep_a_frozen_model_right() -> None:
    frozen = LocalForward(CausalLM(build()))
    before = frozen.model(make_batch()).log_probs
    frozen.offload()
    frozen.onload()
    assert torch.equal(frozen.model(make_batch()).log_probs, before)


def test_one_process_without_a_launcher_is_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    model = ModelConfig(pretrain="p")
    chosen = choose_train_engine(
        lambda: CausalLM(build()), model, OptimConfig(), TrainConfig(), DeepSpeedConfig(zero_stage=3), 1e-3, 5
    )
    assert isinstance(chosen, LocalTrain)


def test_flags_of_deepspeed_need_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match=r"--adam_offload needs DeepSpeed: start the module with `deepspeed"):
        choose_train_engine(
            lambda: CausalLM(build()), ModelConfig(pretrain="p"), OptimConfig(), TrainConfig(),
            DeepSpeedConfig(adam_offload=True), 1e-3, 5,
        )  # fmt: skip


def test_what_is_saved_is_the_moving_average(tiny_folder: Path, tmp_path: Path) -> None:
    """β²·w₀ + (1 − β)·(β·w₁ + w₂) after two steps, in float64; training does not notice, and a loaded state has it."""
    config = ModelConfig(pretrain=str(tiny_folder))
    path = []

    def averaging() -> LocalTrain:
        optim = OptimConfig(lr_warmup_ratio=0, lr_scheduler="constant")
        return LocalTrain(load_causal_lm(str(tiny_folder), config), optim, 1e-2, 10, ema_beta=0.75)

    trained = averaging()
    for _ in range(2):
        path.append(trained.model.hf.lm_head.weight.detach().double())
        take_a_step(trained)
    weight = trained.model.hf.lm_head.weight.detach().clone()
    expected = 0.75**2 * path[0] + 0.25 * (0.75 * path[1] + weight.double())
    later = averaging()
    later.load_state([trained.state()])
    for number, engine in enumerate((trained, later)):
        engine.save(tmp_path / str(number), load_tokenizer(str(tiny_folder), config))
        saved = AutoModelForCausalLM.from_pretrained(tmp_path / str(number)).lm_head.weight.detach()
        torch.testing.assert_close(saved.double(), expected, rtol=1e-6, atol=1e-8)
        assert torch.equal(engine.model.hf.lm_head.weight, weight)
        assert not torch.equal(saved, weight)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_schedule_of_a_run_of_one_step(scheduler: str) -> None:
    """Which is all warmup."""
    trained = engine(OptimConfig(lr_scheduler=scheduler), steps=1)
    take_a_step(trained)
    assert 0 <= trained.scheduler.get_last_lr()[0] <= 0.1
