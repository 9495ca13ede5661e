"""Rollouts that run ahead: who asks when, how old the samples are, and what the update on them is."""

from __future__ import annotations

import copy
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
import torch

from openrlhf.backends.hf_generate import HFGenerate
from openrlhf.cli.train_ppo_ray import optimizer_steps, prompt_batches
from openrlhf.config.commands import PPOConfig
from openrlhf.models.causal_lm import CausalLM
from openrlhf.rollout.collect import collect, make_sample
from openrlhf.rollout.engine import SamplingParams, step_seed
from openrlhf.rollout.partial import finished
from openrlhf.training import ppo
from openrlhf.training.ahead import ages, ask_ahead, fresh, staleness
from openrlhf.training.roles import Roles, done
from openrlhf.types import Metrics, Prompt, Sample
from tests.models.helpers import build
from tests.rollout.scripted import Stopping
from tests.training import slow_ppo
from tests.training.helpers import weights
from tests.training.test_ppo import LR, Lines, assert_same_updates, config_of, package_samples, roles_of, run

EVERY = [Prompt(i, "", [5 + i, 9]) for i in range(6)]


def of_version(sample: Sample, version: int) -> Sample:
    return replace(sample, weight_versions=torch.full_like(sample.tokens, version))


class Diary:
    """Answers with samples of the newest version, and writes down what it was asked."""

    def __init__(self) -> None:
        self.version = 0
        self.entries: list[str] = []
        self.seeds: list[int] = []

    def collect(self, prompts: list[Prompt], seed: int) -> Future[list[Sample]]:
        self.seeds.append(seed)
        self.entries.append(f"collect {len(self.seeds)}")
        return done([of_version(sample, self.version) for sample in package_samples()])

    def sync(self, version: int) -> Future[None]:
        self.entries.append(f"sync {version}")
        self.version = version
        return done(None)


def train(config: PPOConfig, rollout: Any) -> list[Metrics]:
    """The loop on six prompts, two at a time, with a critic and a reference."""
    roles, _, _ = roles_of(config, [], optimizer_steps(config, len(EVERY)))
    log = Lines(config)
    ppo.train(config, replace(roles, rollout=rollout), prompt_batches(EVERY, config), log, 0, 60)
    return log.lines


@pytest.mark.parametrize(
    ("given", "entries", "ages"),
    [
        ({}, "collect 1, sync 1, collect 2, sync 2, collect 3, sync 3", [0, 0, 0]),
        ({"async_train": True}, "collect 1, collect 2, sync 1, collect 3, sync 2, sync 3", [0, 1, 1]),
        (
            {"async_train": True, "async_queue_size": 2},
            "collect 1, collect 2, collect 3, sync 1, sync 2, sync 3",
            [0, 1, 2],
        ),
        (
            {"async_train": True, "async_queue_size": 9},
            "collect 1, collect 2, collect 3, sync 1, sync 2, sync 3",
            [0, 1, 2],
        ),
    ],
    ids=["on-policy", "one ahead", "two ahead", "more ahead than there are"],
)
def test_what_is_asked_before_which_update(given: dict[str, Any], entries: str, ages: list[int]) -> None:
    diary = Diary()
    lines = train(config_of(seed=0, **given), diary)
    assert ", ".join(diary.entries) == entries
    assert diary.seeds == [step_seed(0, step) for step in (1, 2, 3)]
    assert [line["staleness"] for line in lines] == ages == [line["staleness_max"] for line in lines]


@pytest.mark.parametrize("filtering", [False, True])
def test_runs_of_neighbouring_seeds_ask_with_none_in_common(filtering: bool) -> None:
    """Counted on from the seed, each step of one would be the next one's of the other."""
    asked = []
    for seed in (42, 43):
        diary = Diary()
        more = {"dynamic_filtering": True, "dynamic_filtering_reward_range": (-9.0, 9.0)} if filtering else {}
        train(config_of(seed=seed, **more), diary)
        asked.append(set(diary.seeds))
    assert len(asked[0]) == 3
    assert not asked[0] & asked[1]


def test_every_batch_comes_with_its_own_prompts_and_cursor() -> None:
    config = config_of(num_episodes=2, rollout_batch_size=4, train_batch_size=16)
    expected = list(prompt_batches(EVERY, config))
    asked = list(ask_ahead(Diary(), prompt_batches(EVERY, config), 7, 5, 2))
    assert [(a.prompts, a.cursor) for a in asked] == expected
    assert [a.step for a in asked] == [5, 6, 7]


def drawn(*versions: int) -> list[Sample]:
    return [of_version(package_samples()[0], version) for version in versions]


def test_age_and_the_bound_on_it() -> None:
    samples = drawn(4, 2, 3, 4)
    assert [set(ages(sample, step=5).tolist()) for sample in samples] == [{0}, {2}, {1}, {0}]
    assert staleness(samples, 5) == {"weight_version": 3.25, "staleness": 0.75, "staleness_max": 2.0}
    assert fresh(samples, 5, None) == samples
    assert fresh(samples, 5, 1) == [samples[0], *samples[2:]]
    with pytest.raises(ValueError, match="step 9: all 4 samples are older than --max_staleness 3"):
        fresh(samples, 9, 3)


# Engines of their own; the tests' roles stand in for them.
ENGINES = {"local": False, "vllm_num_engines": 1, **{f"{r}_num_gpus_per_node": 1 for r in ("actor", "critic", "ref")}}
PARTIAL = {**ENGINES, "async_train": True, "partial_rollout": True}


def test_samples_that_are_too_old_are_left_out_and_counted() -> None:
    """Of every four samples one began before a sync and ended after it, the others lie behind it."""

    class Across(Diary):
        def collect(self, prompts: list[Prompt], seed: int) -> Future[list[Sample]]:
            samples = [of_version(sample, self.version + 1) for sample in package_samples()]
            for sample in samples[::4]:
                sample.weight_versions[: sample.action_mask.nonzero()[-1]] -= 1
            return done(samples)

    given = {**PARTIAL, "advantage_estimator": "group_norm", "init_kl_coef": 0}
    every, kept = [s.reward for s in package_samples()], [s.reward for i, s in enumerate(package_samples()) if i % 4]
    begun = sum(int(s.action_mask.sum()) - 1 for s in package_samples()[::4])  # tokens of the old weights
    tokens = sum(int(s.action_mask.sum()) for s in package_samples())
    for bound, rewards in (({}, every), ({"max_staleness": 0}, kept)):
        lines = train(config_of(**given, **bound), Across())[1:]  # nothing was in flight before the first
        assert len(lines) == 2
        for line in lines:
            assert line["reward"] == pytest.approx(sum(rewards) / len(rewards))
            assert line["staleness_max"] == (0 if bound else 1)
            assert line["staleness"] == pytest.approx(0 if bound else begun / tokens)
            assert line["mixed"] == (0 if bound else 0.25)
            assert line.get("stale") == (0.25 if bound else None)


def test_a_step_on_responses_of_two_versions_equals_the_slow_script() -> None:
    """Each token is weighed by π over the policy that drew it, which for the first three of a response is an older
    one."""
    models = [build(seed=5), build(seed=0)]
    stopping = Stopping(models, 3)
    params = SamplingParams(temperature=0.8, max_new_tokens=6, stop_token_ids=(1,), seed=11)
    asked = [prompt for prompt in EVERY[:2] for _ in range(4)]
    answers = finished(stopping.ask, [prompt.tokens for prompt in asked], params, str)
    samples, plain, sampled = [], [], []
    for place, (prompt, answer) in enumerate(zip(asked, answers, strict=True)):
        reward = float(sum(answer.token_ids) % 7)
        tokens, positions = prompt.tokens + answer.token_ids, range(2, 2 + len(answer.token_ids))
        plain.append((tokens, list(positions), reward, place // 4))
        samples.append(replace(make_sample(prompt, answer, place // 4), reward=reward, score=0.0))
        with torch.no_grad():
            own = [slow_ppo.log_probs(model, plain[-1], 0.8)[0] for model in models]
        sampled.append([float(own[k // 3][k]) for k in range(len(positions))])
    setting = slow_ppo.Setting(
        "group_norm", temperature=0.8, gamma=1.0, lambd=1.0, eps=0.2, value_clip=0.2, kl_coef=0.05, kl_in_loss=True,
        reward_clip=(-10.0, 10.0), mini_batch=4, epochs=2, peak=LR, total_steps=4, warmup=1, correction="tis",
        threshold=(0.8, 1.2),
    )  # fmt: skip
    config = config_of(
        **PARTIAL, advantage_estimator="group_norm", use_kl_loss=True, kl_estimator="k2",
        enable_vllm_is_correction=True, vllm_is_truncated_threshold=(0.8, 1.2),
    )  # fmt: skip
    policy, _, (metrics,) = run(config, samples)
    actor = slow_ppo.AdamW(build(seed=0), setting, LR["actor"])
    seen = slow_ppo.step(plain, actor, None, build(seed=1), setting, sampled)
    assert {name: metrics[name] for name in seen} == pytest.approx(seen, rel=1e-4, abs=1e-6)
    assert_same_updates(policy.hf, actor.model, build(seed=0))
    assert metrics["mixed"] > 0.5
    assert abs(metrics["correction_weight"] - 1) > 0.01


class Sampler:
    """Samples from the policy, or from a copy of what it was ``late`` updates ago."""

    def __init__(self, config: PPOConfig, policy: CausalLM, late: int | None) -> None:
        self.config = config
        self.policy = policy
        self.late = late
        self.version = 0
        self.history = [copy.deepcopy(policy.hf)]

    def collect(self, prompts: list[Prompt], seed: int) -> Future[list[Sample]]:
        params = SamplingParams(temperature=0.8, max_new_tokens=6, stop_token_ids=(1,), seed=seed)
        old = self.version if self.late is None else max(0, self.version - self.late)
        engine = HFGenerate(self.policy.hf if self.late is None else self.history[old])
        engine.version = old
        samples = collect(prompts, engine, params, 4, None, None)
        return done([replace(s, reward=float(s.tokens.sum() % 7), score=0.0) for s in samples])

    def sync(self, version: int) -> Future[None]:
        self.version = version
        self.history.append(copy.deepcopy(self.policy.hf))
        return done(None)


def trained(config: PPOConfig, late: int | None) -> tuple[torch.Tensor, list[Metrics]]:
    roles, policy, scorer = roles_of(config, [], optimizer_steps(config, len(EVERY) * 2))
    roles = Roles(Sampler(config, policy, late), roles.actor, roles.critic, roles.reference, roles.reward)
    log = Lines(config)
    ppo.train(config, roles, prompt_batches(EVERY, config), log, 0, 60)
    clock = ("time/", "step_seconds", "tokens_per_second")
    lines = [{name: x for name, x in line.items() if not name.startswith(clock)} for line in log.lines]
    return torch.cat([weights(policy), weights(scorer)]), lines


CORRECTED = {"enable_vllm_is_correction": True, "num_episodes": 2, "lr_warmup_ratio": 0}


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_it_equals_the_loop_with_a_sampler_that_lags_behind(ahead: int, epochs: int) -> None:
    """Bit for bit: step k learns from what weights k − 1 − ahead sampled, which the other run keeps copies of."""
    given = {**CORRECTED, "max_epochs": epochs, "train_batch_size": 8, "use_kl_loss": True, "kl_estimator": "k3"}
    got, lines = trained(config_of(async_train=True, async_queue_size=ahead, **given), late=None)
    expected, others = trained(config_of(**given), late=ahead)
    assert torch.equal(got, expected)
    assert lines == others
    assert len(lines) == 6
    assert [line["staleness"] for line in lines] == [min(k, ahead) for k in range(6)]
    drift = [line["engine_log_prob_diff"] for line in lines]
    assert drift[-1] < 1e-4 if ahead == 0 else drift[-1] > 1e-3


def test_sparing_the_forward_for_old_log_probs_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """π_old is the policy just before the update, however old the samples are."""
    given = {**CORRECTED, "max_epochs": 1, "train_batch_size": 8, "init_kl_coef": 0, "advantage_estimator": "rloo"}
    config = config_of(async_train=True, **given)
    assert not ppo.needs_old_log_probs(config)
    _, spared = trained(config, late=None)
    monkeypatch.setattr(ppo, "needs_old_log_probs", lambda config: True)
    _, forwarded = trained(config, late=None)
    for short, long in zip(spared[:2], forwarded[:2], strict=True):  # later ones sample from what rounding made
        for name in ("loss", "correction_weight", "engine_kl", "engine_log_prob_diff", "clip_ratio"):
            assert short[name] == pytest.approx(long[name], rel=1e-3, abs=1e-5)
    assert abs(spared[1]["correction_weight"] - 1) > 1e-4
