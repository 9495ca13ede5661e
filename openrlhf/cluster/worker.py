"""One rank of one role in a Ray actor: builds its model on DeepSpeed and answers the role's verbs."""

from __future__ import annotations

import os
from datetime import timedelta
from functools import partial
from pathlib import Path

import ray
import torch.distributed as dist
from torch import Tensor

from openrlhf.backends.hf_generate import HFGenerate
from openrlhf.backends.meeting import open_store
from openrlhf.backends.shared import SharedForward
from openrlhf.backends.vllm_store import TransferGroup
from openrlhf.backends.vllm_transfer import WeightSender
from openrlhf.config.commands import PPOConfig
from openrlhf.config.derived import actor_steps, critic_source, ema_beta, reward_models
from openrlhf.models.adapters import with_adapter
from openrlhf.models.load import load_causal_lm, load_tokenizer
from openrlhf.models.merged import check_syncs
from openrlhf.rollout.engine import Completion, SamplingParams
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
from openrlhf.training.seeds import seed_process
from openrlhf.types import Batch, Metrics


class Worker:
    """The part that every role has: its place in the process group, and its engine's sleep.

    DeepSpeed is imported in ``start``, in the worker's own process.
    """

    store: dist.TCPStore  # of rank 0: the meeting place is open as long as it lives
    member: PolicyMember | CriticMember | ReferenceMember

    def __init__(self, config: PPOConfig, rank: int, world: int) -> None:
        self.config = config
        self.rank = rank
        self.world = world

    def meeting_place(self) -> tuple[str, int]:
        """Open the meeting place of the process group on this node: its address and port. Rank 0 only."""
        self.store = open_store(ray.util.get_node_ip_address(), timedelta(seconds=self.config.deepspeed.deadline))
        return self.store.host, self.store.port

    def gpu_ids(self) -> list[str]:
        return [str(gpu) for gpu in ray.get_gpu_ids()]

    def join(self, address: str, port: int) -> None:
        """Tell torch.distributed who this rank is; Ray shows each worker its own GPU only, so the local rank is 0. What
        the worker draws, a new head or an adapter, follows from ``--seed``."""
        seed_process(self.config.train)
        os.environ.update(
            MASTER_ADDR=address, MASTER_PORT=str(port), RANK=str(self.rank), WORLD_SIZE=str(self.world), LOCAL_RANK="0"
        )
        # The store is there already, and rank 0 visits it as the others do.
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"

    def offload(self) -> None:
        self.member.engine.offload()

    def onload(self) -> None:
        self.member.engine.onload()


class ActorWorker(Worker):
    """Actor: log-probs, update, and the sending of its weights to the engines. With an adapter also the reference."""

    member: PolicyMember
    sender: WeightSender | None = None
    version = 0  # of its weights: those that the engines have, and one more after an update

    def start(self, total_steps: int) -> None:
        from openrlhf.backends.deepspeed import DeepSpeedTrain

        config = self.config
        engine = DeepSpeedTrain(
            lambda: with_adapter(load_causal_lm(config.model.pretrain, config.model), config.model),
            config.model,
            config.optim,
            config.train,
            config.deepspeed,
            config.algorithm.actor_learning_rate,
            actor_steps(config, total_steps),
            ema_beta(config),
        )
        check_syncs(engine.model.module.hf)
        self.engine = engine
        self.member = PolicyMember(engine, config)
        self.tokenizer = load_tokenizer(config.model.pretrain, config.model)

    def log_probs(self, batch: Batch) -> Tensor:
        return self.member.log_probs(batch)

    def start_log_probs(self, batch: Batch) -> Tensor:
        """Of the model that an adapter was put into."""
        return ReferenceMember(SharedForward(self.member.engine), self.config).log_probs(batch)

    def update(self, batch: Batch, kl_coef: float) -> Metrics:
        metrics = self.member.update(batch, kl_coef)
        self.version += 1
        return metrics

    def weight_version(self) -> int:
        return self.version

    def generate(self, prompts: list[list[int]], params: list[SamplingParams], version: int) -> list[Completion]:
        """Of this worker's part of the prompts, with the weights as they are, which are version ``version``."""
        from openrlhf.backends.deepspeed_generate import whole_model

        with whole_model(self.engine) as hf:
            engine = HFGenerate(hf, decoder(self.tokenizer))
            engine.load_weights([], version)
            return engine.generate(prompts, params)

    def save_state(self, state: Path | None, weights: Path | None) -> str | None:
        return save_part(self.member.engine, self.tokenizer, state, weights)

    def load_state(self, state: Path, redistribute: bool) -> str | None:
        return load_part(self.member.engine, state, redistribute)

    def host_transfer(self, group: TransferGroup) -> TransferGroup:
        """Open the meeting place of the weight transfer; the answer has its port. Rank 0 only."""
        self.sender = WeightSender.host(
            ray.util.get_node_ip_address(), group.workers, group.backend, group.dtype, self.member.engine.device,
            group.timeout_s,
        )  # fmt: skip
        return self.sender.group

    def connect_transfer(self, group: TransferGroup) -> None:
        """Meet the engines. Over CUDA IPC each rank serves the engines on its own GPU, otherwise rank 0 serves all."""
        if self.rank > 0 and group.backend == "ipc":
            self.sender = WeightSender.peer(group, self.member.engine.device)
        if self.sender is not None:
            self.sender.connect()

    def send_weights(self, version: int) -> None:
        """Collective: every rank gathers, the senders send."""
        self.version = version
        weights = self.member.engine.full_weights()
        if self.sender is not None:
            self.sender.send(weights, version)
        else:
            for _ in weights:
                pass


class CriticWorker(Worker):
    member: CriticMember

    def start(self, total_steps: int) -> None:
        from openrlhf.backends.deepspeed import DeepSpeedTrain

        config = self.config
        source = critic_source(config)
        assert source is not None
        engine = DeepSpeedTrain(
            lambda: load_critic(source, config),
            config.model,
            config.optim,
            config.train,
            config.deepspeed,
            config.algorithm.critic_learning_rate,
            total_steps,
        )
        self.member = CriticMember(engine, config)

    def values(self, batch: Batch) -> Tensor:
        return self.member.values(batch)

    def update(self, batch: Batch) -> Metrics:
        return self.member.update(batch)

    def save_state(self, state: Path | None, weights: Path | None) -> str | None:
        tokenizer = load_tokenizer(self.config.model.pretrain, self.config.model)
        return save_part(self.member.engine, tokenizer, state, weights)

    def load_state(self, state: Path, redistribute: bool) -> str | None:
        return load_part(self.member.engine, state, redistribute)


class ReferenceWorker(Worker):
    member: ReferenceMember

    def start(self, total_steps: int) -> None:
        from openrlhf.backends.deepspeed import DeepSpeedForward

        config = self.config
        engine = DeepSpeedForward(
            lambda: load_causal_lm(config.model.pretrain, config.model),
            config.model,
            config.deepspeed,
            config.reward.ref_reward_offload,
        )
        self.member = ReferenceMember(engine, config)

    def log_probs(self, batch: Batch) -> Tensor:
        return self.member.log_probs(batch)


class RewardWorker(Worker):
    """Every reward model of the run, one after the other."""

    members: list[RewardMember]

    def start(self, total_steps: int) -> None:
        from openrlhf.backends.deepspeed import DeepSpeedForward

        config = self.config
        engines = [
            DeepSpeedForward(
                partial(load_reward_model, path, config),
                config.model,
                config.deepspeed,
                config.reward.ref_reward_offload,
            )
            for path in reward_models(config)
        ]
        self.members = [RewardMember(engine, config) for engine in engines]

    def offload(self) -> None:
        for member in self.members:
            member.engine.offload()

    def onload(self) -> None:
        for member in self.members:
            member.engine.onload()

    def rewards(self, batch: Batch, number: int) -> Tensor:
        """Of one of the models."""
        return self.members[number].rewards(batch)


WORKERS: dict[str, type[Worker]] = {
    "actor": ActorWorker,
    "critic": CriticWorker,
    "reference": ReferenceWorker,
    "reward": RewardWorker,
}
