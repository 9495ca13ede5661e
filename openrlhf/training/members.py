"""One rank of each role that holds a model: what it does with its engine. The same in one process and in a worker."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from openrlhf.algorithms.policy_losses import find_policy_loss
from openrlhf.config.commands import PPOConfig
from openrlhf.config.derived import CriticSource
from openrlhf.models.adapters import with_adapter
from openrlhf.models.load import load_score_model
from openrlhf.models.value_head import ScoreModel
from openrlhf.objectives.balance import balanced, each_token
from openrlhf.objectives.reinforcement import policy_loss, value_loss
from openrlhf.training.metric_names import OF_CRITIC
from openrlhf.training.micro_batches import Size, cut, rollout_size, train_size
from openrlhf.training.roles import Engine, ForwardEngine, TrainEngine
from openrlhf.training.update import sequence_mean, token_mean, update
from openrlhf.types import Batch, Metrics, pad_columns


class PolicyMember:
    """Actor: log-probs of the sampled tokens, and the policy update."""

    def __init__(self, engine: TrainEngine, config: PPOConfig) -> None:
        self.engine = engine
        self.config = config

    def log_probs(self, batch: Batch) -> Tensor:
        return sampled_log_probs(self.engine, batch, self.config)

    def update(self, batch: Batch, kl_coef: float) -> Metrics:
        objective = partial(
            policy_loss,
            algorithm=self.config.algorithm,
            temperature=self.config.rollout.temperature,
            packed=self.config.model.packing_samples,
            kl_coef=kl_coef,
        )
        train = self.config.train
        return update(
            self.engine,
            batch,
            balanced(objective, self.config.model.aux_loss_coef, each_token),
            train.train_batch_size,
            train_size(train, self.config.model),
            train.max_epochs,
            sequence_mean if find_policy_loss(self.config.algorithm.policy_loss_type).by_sequence else token_mean,
        )


class CriticMember:
    """Critic: value of the state before each token, and the value update."""

    def __init__(self, engine: TrainEngine, config: PPOConfig) -> None:
        self.engine = engine
        self.config = config

    def values(self, batch: Batch) -> Tensor:
        return _forward(self.engine, batch, self.config, what="values")

    def update(self, batch: Batch) -> Metrics:
        config = self.config
        objective = partial(value_loss, value_clip=config.algorithm.value_clip, packed=config.model.packing_samples)
        train = config.train
        metrics = update(
            self.engine, batch, objective, train.train_batch_size, train_size(train, config.model), train.max_epochs
        )
        return {OF_CRITIC + name: value for name, value in metrics.items()}


class ReferenceMember:
    """Reference: log-probs of the sampled tokens under the frozen policy."""

    def __init__(self, engine: ForwardEngine, config: PPOConfig) -> None:
        self.engine = engine
        self.config = config

    def log_probs(self, batch: Batch) -> Tensor:
        return sampled_log_probs(self.engine, batch, self.config)


class RewardMember:
    """Reward model: one scalar a sample."""

    def __init__(self, engine: ForwardEngine, config: PPOConfig) -> None:
        self.engine = engine
        self.config = config

    def rewards(self, batch: Batch) -> Tensor:
        return _forward(self.engine, batch, self.config, what="scores")


def load_critic(source: CriticSource, config: PPOConfig) -> ScoreModel:
    """The critic's model. With ``--normalize_reward`` its values are on the scale of the normalised rewards."""
    critic = load_score_model(
        source.path,
        config.model,
        config.model.value_head_prefix,
        new_head=source.new_head,
        normalize=config.reward.normalize_reward,
        flag="--critic_pretrain",
    )
    return with_adapter(critic, config.model)


def load_reward_model(path: str, config: PPOConfig) -> ScoreModel:
    """One of the run's reward models, which normalises by its own statistics with ``--normalize_reward``."""
    return load_score_model(
        path,
        config.model,
        config.model.value_head_prefix,
        normalize=config.reward.normalize_reward,
        flag="--reward_pretrain",
    )


def sampled_log_probs(engine: Engine, batch: Batch, config: PPOConfig) -> Tensor:
    """(B, T) float32 on the CPU, at the sampling temperature, 0 outside the action mask."""
    return _forward(engine, batch, config, temperature=config.rollout.temperature)


def _forward(engine: Engine, batch: Batch, config: PPOConfig, **how: Any) -> Tensor:
    return forward(engine, batch, rollout_size(config), config.model.packing_samples, **how)


@torch.no_grad()
def forward(engine: Engine, batch: Batch, micro_batch: Size, packed: bool, **how: Any) -> Tensor:
    """What the model says of each row, (B,) or (B, T) float32 on the CPU, a micro-batch at a time."""
    engine.model.eval()
    width = batch.tokens.shape[1]
    parts = []
    cuts = cut(batch, micro_batch, engine)
    for rows in cuts:
        out = engine.model(batch.select(rows).to(engine.device), packed=packed, **how)
        scores = (out if isinstance(out, Tensor) else out.log_probs).float().cpu()
        parts.append(pad_columns(scores, width) if scores.dim() == 2 else scores)
    order = torch.cat([torch.arange(len(batch))[rows] for rows in cuts])
    return torch.cat(parts)[order.argsort()]
