"""The roles of an RL run in this one process: same members, same verbs, no Ray."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openrlhf.backends.hf_generate import HFGenerate
from openrlhf.backends.local import LocalForward, LocalTrain
from openrlhf.backends.shared import SharedForward
from openrlhf.config.commands import PPOConfig
from openrlhf.config.derived import (
    actor_steps,
    critic_source,
    ema_beta,
    evaluation_rollout,
    reward_models,
    starts_from,
)
from openrlhf.config.groups import RolloutConfig
from openrlhf.models.adapters import with_adapter
from openrlhf.models.load import load_causal_lm
from openrlhf.rollout.agents import agent_of
from openrlhf.rollout.collect import collect, sampling_params
from openrlhf.rollout.engine import RolloutEngine
from openrlhf.rollout.sources import reward_function
from openrlhf.rollout.stop_strings import decoder
from openrlhf.training.checkpoint_part import load_part, save_part
from openrlhf.training.members import (
    CriticMember,
    PolicyMember,
    ReferenceMember,
    RewardMember,
    load_critic,
    load_reward_model,
)
from openrlhf.training.roles import Absent, Critic, ForwardEngine, Reference, Roles, done
from openrlhf.types import Batch, Metrics, Prompt, Sample


class LocalActor:
    def __init__(self, member: PolicyMember, tokenizer: Any) -> None:
        self.member = member
        self.tokenizer = tokenizer

    def log_probs(self, batch: Batch) -> Future[Tensor]:
        return done(self.member.log_probs(batch))

    def update(self, batch: Batch, kl_coef: float) -> Future[Metrics]:
        return done(self.member.update(batch, kl_coef))

    def save_state(self, state: Path | None, weights: Path | None) -> Future[str | None]:
        return done(save_part(self.member.engine, self.tokenizer, state, weights))

    def load_state(self, state: Path, redistribute: bool) -> Future[str | None]:
        return done(load_part(self.member.engine, state, redistribute))


class LocalCritic:
    def __init__(self, member: CriticMember, tokenizer: Any) -> None:
        self.member = member
        self.tokenizer = tokenizer

    def values(self, batch: Batch) -> Future[Tensor | None]:
        return done(self.member.values(batch))

    def update(self, batch: Batch) -> Future[Metrics | None]:
        return done(self.member.update(batch))

    def save_state(self, state: Path | None, weights: Path | None) -> Future[str | None]:
        return done(save_part(self.member.engine, self.tokenizer, state, weights))

    def load_state(self, state: Path, redistribute: bool) -> Future[str | None]:
        return done(load_part(self.member.engine, state, redistribute))


class LocalReference:
    def __init__(self, member: ReferenceMember) -> None:
        self.member = member

    def log_probs(self, batch: Batch) -> Future[Tensor | None]:
        return done(self.member.log_probs(batch))


class LocalReward:
    def __init__(self, members: list[RewardMember]) -> None:
        self.members = members

    def rewards(self, batch: Batch) -> tuple[Future[Tensor], ...]:
        return tuple(done(member.rewards(batch)) for member in self.members)


class LocalRollout:
    """Samples with the actor's own module, so a sync moves nothing."""

    def __init__(self, engine: RolloutEngine, config: PPOConfig, tokenizer: Any) -> None:
        self.engine = engine
        self.config = config
        self.tokenizer = tokenizer
        chunk = config.rollout.micro_rollout_batch_size
        self.reward_function = reward_function(config.reward, chunk, isolated=False)
        self.agent = agent_of(config)

    def collect(self, prompts: list[Prompt], seed: int) -> Future[list[Sample]]:
        return done(self._collect(prompts, self.config.rollout, seed))

    def evaluate(self, prompts: list[Prompt], seed: int) -> Future[list[Sample]]:
        return done(self._collect(prompts, evaluation_rollout(self.config), seed))

    def sync(self, version: int) -> Future[None]:
        self.engine.load_weights([], version)
        return done(None)

    def _collect(self, prompts: list[Prompt], rollout: RolloutConfig, seed: int) -> list[Sample]:
        params = sampling_params(rollout, (self.tokenizer.eos_token_id,), seed)
        n = rollout.n_samples_per_prompt
        return collect(prompts, self.engine, params, n, self.tokenizer, self.reward_function, self.agent)


def local_roles(config: PPOConfig, tokenizer: Any, total_steps: int) -> Roles:
    """Every role that the flags ask for, on the GPU when there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = config.model.bf16
    policy = with_adapter(load_causal_lm(config.model.pretrain, config.model), config.model).to(device)
    algorithm = config.algorithm

    critic: Critic = Absent()
    source = critic_source(config)
    if source is not None:
        model = load_critic(source, config).to(device)
        values = LocalTrain(model, config.optim, algorithm.critic_learning_rate, total_steps, bf16)
        critic = LocalCritic(CriticMember(values, config), tokenizer)
    steps = actor_steps(config, total_steps)
    learner = LocalTrain(policy, config.optim, algorithm.actor_learning_rate, steps, bf16, ema_beta(config))
    reference: Reference = Absent()
    if algorithm.init_kl_coef > 0:
        reference = LocalReference(ReferenceMember(start_of(learner, config), config))
    scorers = [load_reward_model(path, config).to(device) for path in reward_models(config)]
    reward = LocalReward([RewardMember(LocalForward(scorer, bf16), config) for scorer in scorers])
    actor = LocalActor(PolicyMember(learner, config), tokenizer)
    rollout = LocalRollout(HFGenerate(policy.hf, decoder(tokenizer)), config, tokenizer)
    return Roles(rollout, actor, critic, reference, reward)


def start_of(policy: LocalTrain, config: PPOConfig) -> ForwardEngine:
    """The frozen model that ``policy`` starts from. One that learns by an adapter holds it already."""
    if starts_from(config.model, config.model.pretrain):
        return SharedForward(policy)
    model = load_causal_lm(config.model.pretrain, config.model)
    return LocalForward(model.to(policy.device), config.model.bf16)
