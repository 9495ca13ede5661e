"""The RL loop: whole steps against the slow script, what it may leave out, the direction of the KL, the schedule."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from openrlhf.backends.hf_generate import HFGenerate
from openrlhf.backends.local import LocalForward, LocalTrain
from openrlhf.backends.local_roles import LocalActor, LocalCritic, LocalReference
from openrlhf.cli.train_ppo_ray import optimizer_steps, prompt_batches
from openrlhf.config.commands import PPOConfig
from openrlhf.config.derived import actor_steps
from openrlhf.config.parse import read
from openrlhf.data.sampler import Cursor
from openrlhf.models.causal_lm import CausalLM
from openrlhf.models.value_head import ScoreModel
from openrlhf.rollout.collect import make_sample
from openrlhf.rollout.engine import SamplingParams
from openrlhf.training import ppo
from openrlhf.training.bands import BANDS
from openrlhf.training.log import RunLog
from openrlhf.training.members import CriticMember, PolicyMember, ReferenceMember
from openrlhf.training.rewards import add_rewards, part_means, shape_rewards
from openrlhf.training.roles import Absent, Roles, done
from openrlhf.types import Batch, Metrics, Prompt, Sample, collate
from tests.models.helpers import VOCAB, build, build_scorer
from tests.training import slow_ppo
from tests.training.helpers import weights

ESTIMATORS = ["gae", "reinforce", "reinforce_baseline", "rloo", "group_norm", "dr_grpo"]
PROMPTS = [([Prompt(i, "", [5]) for i in range(2)], Cursor())]
LR = {"actor": 2e-3, "critic": 5e-3}
# Prompt, response (None is a token of a tool: no action), reward; four answers to each of two prompts.
ANSWERS = [
    ([7, 30, 2], [11, 12, 13], 1.0), ([7, 30, 2], [14, 15], 0.0), ([7, 30, 2], [16, 17, 18, 19, 1], 3.5),
    ([7, 30, 2], [20], -1.0), ([9], [21, 22, None, None, 23, 24], 0.2), ([9], [25, 26, 27], 0.9),
    ([9], [28, 29], 0.4), ([9], [31, 32, 33, 34], -0.3),
]  # fmt: skip


def plain_samples() -> list[slow_ppo.Sample]:
    made = []
    for i, (prompt, response, reward) in enumerate(ANSWERS):
        actions = [len(prompt) + k for k, token in enumerate(response) if token is not None]
        made.append((prompt + [50 if token is None else token for token in response], actions, reward, i // 4))
    return made


def package_samples() -> list[Sample]:
    made = []
    for tokens, actions, reward, group in plain_samples():
        mask = torch.zeros(len(tokens), dtype=torch.bool)
        mask[actions] = True
        made.append(
            Sample(
                torch.tensor(tokens), mask, torch.zeros(len(tokens)), group=group, reward=reward, score=reward,
                weight_versions=torch.zeros(len(tokens), dtype=torch.int64),
            )
        )  # fmt: skip
    return made


class FixedRollout:
    """Answers every batch of prompts with the same samples."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples

    def collect(self, prompts: list[Prompt], seed: int) -> Future[list[Sample]]:
        return done(self.samples)

    def sync(self, version: int) -> Future[None]:
        return done(None)


def config_of(**given: Any) -> PPOConfig:
    flags = {
        "pretrain": "p", "prompt_data": "d", "remote_rm_url": "r.py", "local": True, "rollout_batch_size": 2,
        "n_samples_per_prompt": 4, "train_batch_size": 4, "micro_train_batch_size": 2, "micro_rollout_batch_size": 3,
        "max_epochs": 2, "temperature": 0.8, "init_kl_coef": 0.05, "actor_learning_rate": LR["actor"],
        "critic_learning_rate": LR["critic"], "lr_warmup_ratio": 0.25, **given,
    }  # fmt: skip
    words = []
    for name, value in flags.items():
        words += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return read(PPOConfig, words)


def roles_of(config: PPOConfig, samples: list[Sample], steps: int) -> tuple[Roles, CausalLM, ScoreModel]:
    """Everything in this process: the actor from seed 0, the reference from seed 1."""
    policy, scorer = CausalLM(build(seed=0)), ScoreModel(build_scorer(seed=2))
    algorithm = config.algorithm
    actor = LocalTrain(policy, config.optim, algorithm.actor_learning_rate, steps)
    critic = LocalTrain(scorer, config.optim, algorithm.critic_learning_rate, steps)
    reference = LocalReference(ReferenceMember(LocalForward(CausalLM(build(seed=1))), config))
    roles = Roles(
        FixedRollout(samples),
        LocalActor(PolicyMember(actor, config), None),
        LocalCritic(CriticMember(critic, config), None) if algorithm.advantage_estimator == "gae" else Absent(),
        reference if algorithm.init_kl_coef > 0 else Absent(),
        Absent(),
    )
    return roles, policy, scorer


class Lines(RunLog):
    """A log that keeps its lines in memory."""

    def __init__(self, config: PPOConfig) -> None:
        super().__init__(Path("nowhere"), config.log, {}, writes=False)
        self.lines: list[Metrics] = []

    def step(self, step: int, metrics: Metrics) -> None:
        super().step(step, metrics)
        self.lines.append(metrics)


def run(config: PPOConfig, samples: list[Sample], rollouts: int = 1) -> tuple[CausalLM, ScoreModel, list[Metrics]]:
    roles, policy, scorer = roles_of(config, samples, optimizer_steps(config, 2 * rollouts))
    log = Lines(config)
    ppo.train(config, roles, PROMPTS * rollouts, log, pad_token_id=0, deadline_s=60)
    return policy, scorer, log.lines


@pytest.mark.parametrize("kl_in_loss", [False, True], ids=["kl in reward", "kl in loss"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_whole_steps_equal_the_slow_script(estimator: str, kl_in_loss: bool) -> None:
    discounts = {"gae": (0.9, 0.8), "reinforce": (0.9, 1.0)}
    gamma, lambd = discounts.get(estimator, (1.0, 1.0))
    setting = slow_ppo.Setting(
        estimator, temperature=0.8, gamma=gamma, lambd=lambd, eps=0.2, value_clip=0.2, kl_coef=0.05,
        kl_in_loss=kl_in_loss, reward_clip=(-2.0, 2.0), mini_batch=4, epochs=2, peak=LR, total_steps=4, warmup=1,
        entropy=0.01,
    )  # fmt: skip
    config = config_of(
        advantage_estimator=estimator, gamma=gamma, lambd=lambd, reward_clip_range=(-2.0, 2.0), entropy_loss_coef=0.01,
        use_kl_loss=kl_in_loss, kl_estimator="k2" if kl_in_loss else "k1",
    )  # fmt: skip
    policy, scorer, (metrics,) = run(config, package_samples())

    actor = slow_ppo.AdamW(build(seed=0), setting, LR["actor"])
    critic = slow_ppo.AdamW(build_scorer(seed=2), setting, LR["critic"]) if estimator == "gae" else None
    seen = slow_ppo.step(plain_samples(), actor, critic, build(seed=1), setting)

    assert {name: metrics[name] for name in seen} == pytest.approx(seen, rel=1e-4, abs=1e-6)
    assert_same_updates(policy.hf, actor.model, build(seed=0))
    if critic is not None:
        assert_same_updates(scorer.hf, critic.model, build_scorer(seed=2))
    assert metrics["reward"] == pytest.approx(sum(r for *_, r in ANSWERS) / len(ANSWERS))


VARIANTS = [
    *(("gspo", None, eps) for eps in (0.01, 0.2)),
    *(("cispo", None, eps) for eps in (0.01, 0.2)),
    *(("ppo", correction, 0.2) for correction in ("tis", "icepop", "seq-mask-tis")),
    ("gspo", "icepop", 0.01),
]


@pytest.mark.parametrize(("loss", "correction", "eps"), VARIANTS)
def test_whole_steps_of_other_losses_and_corrections(loss: str, correction: str | None, eps: float) -> None:
    """The engine's log-probs are off those of the trainer by up to 0.5, so that bounds of 0.8 and 1.2 decide."""
    setting = slow_ppo.Setting(
        "group_norm", temperature=0.8, gamma=1.0, lambd=1.0, eps=eps, value_clip=0.2, kl_coef=0.05, kl_in_loss=True,
        reward_clip=(-10.0, 10.0), mini_batch=4, epochs=2, peak=LR, total_steps=4, warmup=1, policy_loss=loss,
        correction=correction, threshold=(0.8, 1.2),
    )  # fmt: skip
    given = {} if correction is None else {
        "enable_vllm_is_correction": True, "vllm_is_correction_type": correction,
        "vllm_is_truncated_threshold": (0.8, 1.2),
    }  # fmt: skip
    config = config_of(
        advantage_estimator="group_norm",
        use_kl_loss=True,
        kl_estimator="k2",
        policy_loss_type=loss,
        eps_clip=eps,
        **given,
    )
    start, generator = build(seed=0), torch.Generator().manual_seed(3)
    sampled = []
    samples = package_samples()
    for sample, plain in zip(samples, plain_samples(), strict=True):
        with torch.no_grad():
            own = [float(x) for x in slow_ppo.log_probs(start, plain, 0.8)[0]]
        sampled.append([x + float(torch.rand(1, generator=generator)) - 0.5 for x in own])
        sample.rollout_log_probs[sample.action_mask] = torch.tensor(sampled[-1])
    policy, _, (metrics,) = run(config, samples)

    actor = slow_ppo.AdamW(build(seed=0), setting, LR["actor"])
    seen = slow_ppo.step(plain_samples(), actor, None, build(seed=1), setting, None if correction is None else sampled)
    assert {name: metrics[name] for name in seen} == pytest.approx(seen, rel=1e-4, abs=1e-6)
    assert_same_updates(policy.hf, actor.model, start)
    if correction is not None:
        assert metrics["correction_weight"] != pytest.approx(1.0, abs=0.01)
    if loss != "ppo":
        assert 0 < metrics["clip_ratio"] < 1 or eps == 0.2


def assert_same_updates(got: torch.nn.Module, expected: torch.nn.Module, start: torch.nn.Module) -> None:
    """What training added is the same to a thousandth, and it is something."""
    added, wanted = weights(got) - weights(start), weights(expected) - weights(start)
    assert wanted.abs().max() > 1e-3
    assert (added - wanted).norm() < 1e-3 * wanted.norm()


def steps_of(**given: Any) -> PPOConfig:
    return config_of(**{"advantage_estimator": "group_norm", "max_epochs": 1, "train_batch_size": 8, **given})


@pytest.mark.parametrize(
    ("config", "needed"),
    [
        (steps_of(init_kl_coef=0), False),
        (steps_of(init_kl_coef=0.1, use_kl_loss=True), False),
        (steps_of(init_kl_coef=0.1), True),
        (replace(steps_of(init_kl_coef=0), train=replace(steps_of().train, max_epochs=2)), True),
        (replace(steps_of(init_kl_coef=0), train=replace(steps_of().train, train_batch_size=4)), True),
    ],
    ids=["on-policy", "KL in the loss", "KL in the reward", "two epochs", "two mini-batches"],
)
def test_the_forward_for_old_log_probs_is_spared_where_it_may_be(config: PPOConfig, needed: bool) -> None:
    assert ppo.needs_old_log_probs(config) is needed


def test_sparing_it_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    config = steps_of(init_kl_coef=0.1, use_kl_loss=True, lr_warmup_ratio=0)
    spared, _, (short,) = run(config, package_samples())
    monkeypatch.setattr(ppo, "needs_old_log_probs", lambda config: True)
    forwarded, _, (long,) = run(config, package_samples())
    assert_same_updates(spared, forwarded, CausalLM(build(seed=0)))
    for name in ("loss", "kl", "entropy", "clip_ratio", "engine_log_prob_diff"):
        assert short[name] == pytest.approx(long[name], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("where", "estimator"), [("loss", "k2"), ("loss", "k3"), ("reward", "k1")])
def test_the_kl_alone_brings_the_policy_nearer(where: str, estimator: str) -> None:
    """All rewards are equal, so the KL is all there is. It is measured whole, over the vocabulary."""
    config = steps_of(
        init_kl_coef=1.0, use_kl_loss=where == "loss", kl_estimator=estimator, lr_warmup_ratio=0, temperature=1.0,
        advantage_estimator="reinforce_baseline", max_epochs=1, train_batch_size=64, n_samples_per_prompt=32,
        actor_learning_rate=1e-3, max_norm=0,
    )  # fmt: skip
    roles, policy, _ = roles_of(config, [], 5)
    with torch.no_grad():
        for p in policy.parameters():
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3), dtype=p.dtype)
    reference = build(seed=0)
    frozen = LocalReference(ReferenceMember(LocalForward(CausalLM(build(seed=0))), config))
    contexts = sampled(policy.hf, seed=99)
    before = exact_kl(policy.hf, reference, contexts)
    log = Lines(config)
    roles = replace(roles, reference=frozen, rollout=FixedRollout(sampled(policy.hf, seed=1)))
    ppo.train(config, roles, PROMPTS, log, 0, 60)
    assert exact_kl(policy.hf, reference, contexts) < 0.97 * before
    # The estimates of the log are of the same size as the truth.
    assert 0.2 * before < log.lines[0]["kl"] < 5 * before


def sampled(hf: Any, seed: int) -> list[Sample]:
    """32 answers of 12 tokens to each of two prompts, all of the same reward."""
    prompts = [[7, 30, 2]] * 32 + [[9]] * 32
    answers = HFGenerate(hf).generate(prompts, SamplingParams(max_new_tokens=12, seed=seed))
    return [
        replace(make_sample(Prompt(i // 32, "", prompt), answer, i // 32), reward=0.5)
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]


@torch.no_grad()
def exact_kl(hf: Any, reference: Any, samples: list[Sample]) -> float:
    """Mean over the contexts of the samples of Σ_v π(v) (log π(v) − log π_ref(v))."""
    parts = []
    for s in samples:
        now, then = (m(s.tokens[None]).logits[0].log_softmax(-1) for m in (hf, reference))
        parts.append(((now.exp() * (now - then)).sum(-1))[:-1][s.action_mask[1:]])
    return float(torch.cat(parts).mean())


@pytest.mark.parametrize(
    ("prompts", "given"),
    [
        (8, {}),
        (7, {}),
        (3, {"num_episodes": 3}),
        (5, {"num_episodes": 3, "rollout_batch_size": 4, "train_batch_size": 16}),
        (1, {"rollout_batch_size": 8, "max_epochs": 3}),
        (9, {"rollout_batch_size": 4, "train_batch_size": 2, "max_epochs": 1}),
    ],
)
def test_the_schedule_ends_with_the_last_optimizer_step(prompts: int, given: dict[str, Any]) -> None:
    config = config_of(advantage_estimator="group_norm", init_kl_coef=0, **given)
    total = optimizer_steps(config, prompts)
    roles, _, _ = roles_of(config, [], total)
    roles.rollout.collect = lambda asked, seed: done([sample for _ in asked for sample in package_samples()[:4]])
    every = [Prompt(i, "", [5]) for i in range(prompts)]
    engine = roles.actor.member.engine
    seen = recorded_rates(engine)
    ppo.train(config, roles, prompt_batches(every, config), Lines(config), 0, 60)
    assert len(seen) == total == engine.scheduler.last_epoch
    assert engine.scheduler.get_last_lr()[0] == pytest.approx(0.1 * LR["actor"])  # what a step more would have
    assert max(seen[-1:]) == min(seen[len(seen) // 2 :])


def recorded_rates(engine: LocalTrain) -> list[float]:
    seen: list[float] = []
    original = engine.step

    def step() -> Any:
        stats = original()
        seen.append(stats.lr)
        return stats

    engine.step = step
    return seen


def test_each_prompt_comes_once_an_episode() -> None:
    config = config_of(advantage_estimator="group_norm", num_episodes=2, rollout_batch_size=4)
    every = [Prompt(i, "", [5]) for i in range(7)]
    asked = [[p.id for p in batch] for batch, _ in prompt_batches(every, config)]
    assert [len(batch) for batch in asked] == [4, 4, 4, 2]
    flat = list(chain.from_iterable(asked))
    assert sorted(flat[:7]) == sorted(flat[7:]) == list(range(7))
    assert flat[:7] != flat[7:]


def test_the_critic_alone_learns_first() -> None:
    """Two of three rollout batches: no actor metric, no change of the KL weight, and the actor's schedule waits."""
    config = config_of(freezing_actor_steps=2, kl_target=1e-4, kl_horizon=80, kl_estimator="k2")
    policy, scorer, lines = run(config, package_samples(), rollouts=3)
    assert not torch.equal(weights(policy.hf), weights(build(seed=0)))
    assert ["policy_loss" in line for line in lines] == [False, False, True]
    assert all(line["critic_loss"] > 0 for line in lines)
    assert [line["kl_coef"] for line in lines] == [0.05] * 3
    assert not torch.equal(weights(scorer.hf), weights(build_scorer(seed=2)))


@pytest.mark.parametrize(("frozen", "expected"), [(-1, 12), (0, 12), (2, 4), (3, 1), (9, 1)])
def test_the_schedule_of_the_actor_begins_when_it_learns(frozen: int, expected: int) -> None:
    """Three rollout batches of eight samples, each learned from twice in mini-batches of four: 12 steps."""
    config = config_of(n_samples_per_prompt=4)
    config = replace(config, algorithm=replace(config.algorithm, freezing_actor_steps=frozen))
    assert actor_steps(config, optimizer_steps(config, prompts=6)) == expected


@pytest.mark.parametrize("wrong", [None, "a layer", "the head", "the temperature"])
def test_an_engine_that_samples_from_another_policy_shows_in_the_first_step(wrong: str | None) -> None:
    config, policy, other = steps_of(init_kl_coef=0), build(seed=0), build(seed=5)
    parts = {"a layer": "model.layers.1.", "the head": "lm_head."}
    if wrong in parts:
        policy.load_state_dict(
            {name: value for name, value in other.state_dict().items() if name.startswith(parts[wrong])}, strict=False
        )
    params = SamplingParams(temperature=1.25 if wrong == "the temperature" else 0.8, max_new_tokens=8, seed=1)
    prompts = [prompt for prompt in ([7, 30, 2], [9]) for _ in range(4)]
    answers = HFGenerate(policy).generate(prompts, params)
    samples = [
        replace(make_sample(Prompt(i // 4, "", prompt), answer, i // 4), reward=float(i % 3))
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]
    _, _, (metrics,) = run(config, samples)
    difference = metrics["engine_log_prob_diff"]
    assert difference < 1e-4 if wrong is None else BANDS["engine_log_prob_diff"].verdict(difference) == "red"


def test_the_adaptive_coefficient_follows_the_measured_kl() -> None:
    """arXiv:1909.08593 §2.2: far above the target, it grows by 0.2 · samples / horizon each rollout batch."""
    config = config_of(advantage_estimator="group_norm", kl_target=1e-4, kl_horizon=80, kl_estimator="k2")
    _, _, lines = run(config, package_samples(), rollouts=3)
    growth = 1 + 0.2 * 8 / 80
    assert [line["kl_coef"] for line in lines] == pytest.approx([0.05, 0.05 * growth, 0.05 * growth**2])


def test_the_rewards_come_from_the_model_when_no_function_gave_them() -> None:
    class Scores:
        def rewards(self, batch: Any) -> tuple[Future[Tensor], ...]:
            return (done(batch.tokens[:, -1].float() / VOCAB),)

    config = steps_of(init_kl_coef=0)
    roles, _, _ = roles_of(config, [replace(s, reward=None, score=None) for s in package_samples()], 1)
    log = Lines(config)
    ppo.train(config, replace(roles, reward=Scores()), PROMPTS, log, 0, 60)
    width = max(len(s.tokens) for s in package_samples())
    last = [float(s.tokens[-1]) if len(s.tokens) == width else 0.0 for s in package_samples()]
    assert log.lines[0]["reward"] == pytest.approx(sum(last) / VOCAB / len(last), rel=1e-5)
    assert "score" not in log.lines[0]


def test_several_rewards_are_weighed_and_summed() -> None:
    class TwoModels:
        def rewards(self, batch: Any) -> tuple[Future[Tensor], ...]:
            return done(torch.arange(8.0)), done(torch.full((8,), 2.0))

    config = steps_of(init_kl_coef=0)
    samples = package_samples()
    batch = collate(samples, 0)
    roles, _, _ = roles_of(config, samples, 1)
    summed, parts = add_rewards(batch, replace(roles, reward=TwoModels()), [0.5, -1.0, 2.0], 60)
    expected = [0.5 * i - 2.0 + 2.0 * float(sample.reward) for i, sample in enumerate(samples)]
    assert summed.rewards.tolist() == pytest.approx(expected)
    function = sum(float(sample.reward) for sample in samples) / 8
    assert part_means(parts) == pytest.approx(
        {"reward/model_1": 3.5, "reward/model_2": 2.0, "reward/function": function}
    )


def test_the_parts_of_a_reward_are_logged() -> None:
    samples = package_samples()
    for i, sample in enumerate(samples):
        sample.metrics = {"format": float(i)}
        sample.truncated = i < 2
    _, _, (metrics,) = run(steps_of(init_kl_coef=0), samples)
    assert metrics["reward/format"] == 3.5
    assert metrics["truncated"] == 0.25
    assert metrics["response_length_max"] == 5


def test_length_costs_reward_before_advantages() -> None:
    """Answers of 3, 2, 5, 1 and 4, 3, 2, 4 actions, at most 6: from the fourth on a third of 0.5 a token; the second
    sample was cut and counts as −1."""
    samples = package_samples()
    samples[1].truncated = True
    config = steps_of(
        init_kl_coef=0, generate_max_len=6, overlong_buffer_len=3, overlong_penalty_factor=1.5,
        stop_properly_penalty_coef=-1.0,
    )  # fmt: skip
    lengths, rewards = [len(actions) for _, actions, *_ in plain_samples()], [r for *_, r in ANSWERS]
    shaped = [r - 0.5 * max(0, n - 3) for r, n in zip(rewards, lengths, strict=True)]
    shaped[1] = -1.0
    _, _, (metrics,) = run(config, samples)
    assert metrics["reward"] == pytest.approx(sum(shaped) / len(shaped))


def test_the_reward_stands_on_an_eos_that_is_the_padding_too() -> None:
    """The first answer ends with token 1 and the second was cut. REINFORCE at γ = 0.5: a half and a quarter before."""
    eos = 1
    samples = [
        Sample(torch.tensor([7, 8, eos]), torch.tensor([False, True, True]), group=0, reward=1.0),
        Sample(torch.tensor([7, 8, 9, 10]), torch.tensor([False, True, True, True]), group=1, reward=2.0),
    ]
    batch = collate(samples, pad_token_id=eos)
    assert batch.tokens.tolist() == [[7, 8, eos, eos], [7, 8, 9, 10]]
    config = config_of(
        advantage_estimator="reinforce", init_kl_coef=0, gamma=0.5, no_advantage_std_norm=True, n_samples_per_prompt=2
    )
    assert ppo.add_advantages(batch, config, 0.0).returns.tolist() == [[0, 0.5, 1, 0], [0, 0.5, 1, 2]]
    policy, scorer = CausalLM(build(seed=0)).eval(), ScoreModel(build_scorer(seed=2)).eval()
    with torch.no_grad():
        together = policy(batch).log_probs, scorer(batch), scorer(batch, "values")
        for row, sample in enumerate(samples):
            alone, count = collate([sample], pad_token_id=0), len(sample.tokens)
            torch.testing.assert_close(together[0][row, :count], policy(alone).log_probs[0])
            torch.testing.assert_close(together[1][row], scorer(alone)[0])
            torch.testing.assert_close(together[2][row, :count], scorer(alone, "values")[0])
    assert together[0][0, 3] == together[2][0, 3] == 0


def test_what_changes_a_reward_changes_its_turns() -> None:
    """A turn of two tokens paid 1 and one of one token paid 2, twice; the second sample was cut."""
    parts = torch.tensor([[0.0, 0.0, 1.0, 0.0, 2.0]] * 2)
    mask = torch.tensor([[False, True, True, False, True]] * 2)
    batch = Batch(
        torch.ones(2, 5, dtype=torch.int64), torch.ones(2, 5, dtype=torch.bool), mask, groups=torch.tensor([0, 1]),
        rewards=parts.sum(dim=1), truncated=torch.tensor([False, True]), turn_rewards=parts,
    )  # fmt: skip
    config = config_of(
        advantage_estimator="reinforce", init_kl_coef=0, gamma=1.0, reward_weights=(3.0,),
        stop_properly_penalty_coef=0.5, no_advantage_std_norm=True,
    )  # fmt: skip
    weighed, _ = add_rewards(batch, roles_of(config, package_samples(), 1)[0], [3.0], 60.0)
    shaped = shape_rewards(weighed, config)
    assert shaped.turn_rewards.tolist() == [[0, 0, 3, 0, 6], [0, 0, 1.5, 0, 3]]
    assert shaped.rewards.tolist() == [9.0, 4.5]
    returns = ppo.add_advantages(shaped, config, 0.0).returns
    assert returns.tolist() == [[0, 9, 9, 0, 6], [0, 4.5, 4.5, 0, 3]]
