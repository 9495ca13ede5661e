"""Steps of real little runs come out again as they were stored; whatever is changed is the first field that differs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openrlhf.cli.train_ppo_ray import optimizer_steps
from openrlhf.config.commands import PPOConfig
from openrlhf.inspect.replay import Check, replay
from openrlhf.training import ppo
from openrlhf.training.sample_file import StoredSample, StoredStep, read_step, step_path
from openrlhf.training.samples import SampleStore
from openrlhf.types import Metrics, Sample
from tests.training.test_ppo import PROMPTS, Lines, config_of, package_samples, roles_of
from tests.training.test_samples import Characters

ONE_STEP = {"max_epochs": 1, "train_batch_size": 8}
KINDS: dict[str, dict[str, Any]] = {
    "gae": {"advantage_estimator": "gae", "gamma": 0.9, "lambd": 0.8},
    "reinforce, part": {"advantage_estimator": "reinforce", "samples_per_step": 4},
    "centred, part": {
        "advantage_estimator": "reinforce_baseline", "samples_per_step": 4, "no_advantage_std_norm": True,
    },
    "group_norm": {"advantage_estimator": "group_norm", "use_kl_loss": True, "kl_estimator": "k3", **ONE_STEP},
    "rloo": {"advantage_estimator": "rloo", "init_kl_coef": 0, **ONE_STEP},
    "gspo": {
        "advantage_estimator": "dr_grpo", "policy_loss_type": "gspo", "enable_vllm_is_correction": True, **ONE_STEP,
    },
    "length": {"advantage_estimator": "group_norm", "generate_max_len": 6, "overlong_buffer_len": 4, **ONE_STEP},
}  # fmt: skip


def samples() -> list[Sample]:
    """With log-probs of an engine that is a little off."""
    made = package_samples()
    for i, sample in enumerate(made):
        noise = torch.randn(len(sample.tokens), generator=torch.Generator().manual_seed(i))
        sample.rollout_log_probs = (-4 + 0.1 * noise) * sample.action_mask
    return made


def run(folder: Path, **given: Any) -> tuple[StoredStep, PPOConfig, Metrics]:
    config = config_of(**given)
    roles, _, _ = roles_of(config, samples(), optimizer_steps(config, 4))
    store, log = SampleStore(folder, config, Characters()), Lines(config)
    ppo.train(config, roles, PROMPTS * 2, log, pad_token_id=0, deadline_s=60, store=store)
    store.close()
    return read_step(step_path(folder / "samples", 2)), config, log.lines[1]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(tmp_path_factory.mktemp("run"), **KINDS[request.param])


def test_a_step_comes_out_as_stored(kind: tuple[StoredStep, PPOConfig, Metrics]) -> None:
    step, config, logged = kind
    checks = {check.field: check for check in replay(step, config, logged)}
    assert not [check for check in checks.values() if check.difference]
    assert {"outcome", "reward", "returns", "advantages", "loss"} <= set(checks)
    assert ("kl" in checks) == (config.algorithm.init_kl_coef > 0)
    assert ("value_loss" in checks) == (config.algorithm.advantage_estimator == "gae")
    assert ("metric reward" in checks) == step.whole == (len(step.samples) == 8)
    assert ("metric policy_loss" in checks) == (config.train.max_epochs == 1)
    actions = sum(int(sample.action_mask.sum()) for sample in step.samples)
    assert checks["advantages"].compared == actions
    assert bool(checks["advantages"].note) == (not step.whole)


def test_what_is_stored_is_what_the_formulas_say(tmp_path: Path) -> None:
    """Group-normalised advantages and the k3 estimate, by hand in float64."""
    step, _, _ = run(tmp_path, **KINDS["group_norm"])
    rewards = torch.tensor([s.reward for s in step.samples], dtype=torch.float64).reshape(2, 4)
    expected = (rewards - rewards.mean(1, keepdim=True)) / rewards.std(1, keepdim=True)
    for sample, advantage in zip(step.samples, expected.flatten().tolist(), strict=True):
        assert sample.per_token["advantages"][sample.action_mask] == pytest.approx(advantage, abs=1e-5)
        assert not sample.per_token["advantages"][~sample.action_mask].any()
        gap = (sample.per_token["ref_log_probs"] - sample.per_token["log_probs"]).double()
        kl = (gap.exp() - 1 - gap).clamp(max=10)
        torch.testing.assert_close(sample.per_token["kl"].double(), kl * sample.action_mask, rtol=1e-5, atol=1e-6)
        loss = -sample.per_token["advantages"] + step.kl_coef * sample.per_token["kl"]
        torch.testing.assert_close(sample.per_token["loss"], loss * sample.action_mask)


def changed(name: str) -> Callable[[StoredSample], StoredSample]:
    def change(sample: StoredSample) -> StoredSample:
        if name in sample.per_token:
            bent = sample.per_token[name].clone()
            bent[sample.action_mask.nonzero()[-1]] += 0.01
            return replace(sample, per_token={**sample.per_token, name: bent})
        if name == "parts":
            return replace(sample, parts={"function": sample.parts["function"] + 0.5})
        return replace(sample, **{name: vars(sample)[name] + 0.5})

    return change


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("parts", "outcome"),
        ("outcome", "outcome"),
        ("reward", "reward"),
        ("ref_log_probs", "kl"),
        ("kl", "kl"),
        ("values", "advantages"),
        ("returns", "returns"),
        ("advantages", "advantages"),
        ("loss", "loss"),
        ("value_loss", "value_loss"),
    ],
)
def test_the_first_field_that_differs_is_named(tmp_path_factory: Any, gae: Any, name: str, field: str) -> None:
    step, config, logged = gae
    bent = [changed(name)(s) if s.row == 5 else s for s in step.samples]
    checks = list(replay(replace(step, samples=bent), config, logged))
    first = next(check for check in checks if check.difference)
    assert first.difference is not None
    assert first.field == field or (name == "values" and first.field == "returns")
    assert "2:5" in first.difference.where or name == "values"


@pytest.fixture(scope="module")
def gae(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(tmp_path_factory.mktemp("gae"), **KINDS["gae"])


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        ({"gamma": 0.5}, "returns"),
        ({"kl_estimator": "k2"}, "kl"),
        ({"reward_weights": "2.0"}, "outcome"),
        ({"overlong_buffer_len": 1024}, "reward"),
        ({"reward_clip_range": (-0.1, 0.1)}, "returns"),
        ({"no_advantage_std_norm": True}, "advantages"),
    ],
)
def test_another_configuration_shows_where_it_matters(gae: Any, flags: dict[str, Any], field: str) -> None:
    step, _, logged = gae
    config = config_of(**{**KINDS["gae"], **flags})
    assert first_difference(list(replay(step, config, logged))).field == field


def test_a_metric_that_was_not_logged_so_is_found(tmp_path: Path) -> None:
    step, config, logged = run(tmp_path, **KINDS["rloo"])
    for name in ("reward", "advantage_std", "policy_loss"):
        off = {**logged, name: logged[name] + 0.05}
        assert first_difference(list(replay(step, config, off))).field == f"metric {name}"


def first_difference(checks: list[Check]) -> Check:
    return next(check for check in checks if check.difference)
