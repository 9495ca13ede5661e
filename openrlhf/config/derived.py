"""What follows from the flags: read here, never written back into the configuration."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from openrlhf.config.commands import DPOConfig, PPOConfig
from openrlhf.config.groups import DeepSpeedConfig, ModelConfig, RewardConfig, RolloutConfig, ServeConfig


@dataclass(frozen=True)
class CriticSource:
    """Where the critic starts. A new head is drawn when the folder is the actor's, which has none."""

    path: str
    new_head: bool


@dataclass(frozen=True)
class RoleSize:
    """The machines of a role and the GPUs it has on each; one worker a GPU."""

    nodes: int
    gpus_per_node: int

    @property
    def workers(self) -> int:
        return self.nodes * self.gpus_per_node


def critic_source(config: PPOConfig) -> CriticSource | None:
    """The start of the critic, or None when the advantage estimator needs no critic.

    Without ``--critic_pretrain`` it is the first reward model, or ``--pretrain`` where a function gives the rewards.
    Raises ValueError for an unknown estimator.
    """
    from openrlhf.algorithms.advantages import find_estimator  # here, so that --help does not wait for torch

    if not find_estimator(config.algorithm.advantage_estimator).needs_critic:
        return None
    path = config.reward.critic_pretrain or [*reward_models(config), config.model.pretrain][0]
    return CriticSource(path, new_head=path == config.model.pretrain)


def reward_models(config: PPOConfig) -> list[str]:
    """The folders or hub names of the reward models."""
    given = config.reward.reward_pretrain
    return [] if given is None else given.split(",")


def reward_sources(config: RewardConfig) -> tuple[str | None, list[str]]:
    """The Python file of ``--remote_rm_url`` and the addresses of its servers, either or both."""
    parts = [] if config.remote_rm_url is None else config.remote_rm_url.split(",")
    file = next((part for part in parts if part.endswith(".py") and "://" not in part), None)
    if file is not None:
        parts.remove(file)
    return file, parts


def file_and_servers(config: RewardConfig) -> bool:
    """Whether both give rewards, which are then one sum before the reward models come to it."""
    file, servers = reward_sources(config)
    return file is not None and bool(servers)


def reward_weights(config: PPOConfig) -> list[float]:
    """The weight of each reward model, and behind them that of the function, server or agent where there is one; 1 for
    the sum of a function and servers."""
    function = config.reward.remote_rm_url or config.rollout.agent_func_path
    models, given = len(reward_models(config)), config.reward.reward_weights
    if given is None or file_and_servers(config.reward):
        return [*(given or [1.0] * models)[:models], *[1.0] * (function is not None)]
    return list(given)


def reference_source(config: DPOConfig) -> str:
    """The folder or hub name of the reference: without ``--ref_pretrain`` the model as it is before training."""
    return config.preference.ref_pretrain or config.model.pretrain


def starts_from(model: ModelConfig, source: str) -> bool:
    """Whether the model that learns, with its adapter switched off, is the one at ``source``."""
    return model.lora_rank > 0 and source == model.pretrain


def needs_deepspeed(config: DeepSpeedConfig) -> list[str]:
    """The flags, with their dashes, that only DeepSpeed can serve.

    ``--zero_stage`` is not among them: a single process holds the one part of whatever is partitioned.
    """
    own = [f for f in fields(config) if f.name != "zero_stage"]
    return [f"--{f.name}" for f in own if vars(config)[f.name] != f.default]


def ranks_sharing_rows(config: PPOConfig) -> int:
    """Neighbouring workers of a role that get the same rows: a ring or a tensor-parallel group, 1 without either."""
    return config.model.ring_attn_size * config.deepspeed.ds_tensor_parallel_size


def own_reference(config: PPOConfig) -> bool:
    """Whether the run needs a reference beside the actor. One that learns by an adapter is its own, with that off."""
    return config.algorithm.init_kl_coef > 0 and not starts_from(config.model, config.model.pretrain)


def role_sizes(config: PPOConfig) -> dict[str, RoleSize]:
    """The roles of the run that hold a model, by the name their flags begin with: actor, critic, ref, reward."""
    place = config.placement
    sizes = {"actor": RoleSize(place.actor_num_nodes, place.actor_num_gpus_per_node)}
    if critic_source(config) is not None:
        sizes["critic"] = RoleSize(place.critic_num_nodes, place.critic_num_gpus_per_node)
    if own_reference(config):
        sizes["ref"] = RoleSize(place.ref_num_nodes, place.ref_num_gpus_per_node)
    if config.reward.reward_pretrain is not None:
        sizes["reward"] = RoleSize(place.reward_num_nodes, place.reward_num_gpus_per_node)
    return sizes


def rollouts_ahead(rollout: RolloutConfig) -> int:
    """Rollout batches that are asked for before the update on the one before them begins; 0 is on-policy."""
    return rollout.async_queue_size if rollout.async_train else 0


def evaluation_rollout(config: PPOConfig) -> RolloutConfig:
    """How the prompts of ``--eval_dataset`` are answered: as in training but for temperature and number of samples."""
    own = config.evaluation
    return replace(config.rollout, temperature=own.eval_temperature, n_samples_per_prompt=own.eval_n_samples_per_prompt)


def actor_steps(config: PPOConfig, total_steps: int) -> int:
    """Optimizer steps of the actor, at least 1, of ``total_steps`` of the critic: it waits ``--freezing_actor_steps``
    rollout batches."""
    rows = config.rollout.rollout_batch_size * config.rollout.n_samples_per_prompt
    a_batch = config.train.max_epochs * rows // config.train.train_batch_size
    return max(1, total_steps - max(0, config.algorithm.freezing_actor_steps) * a_batch)


def ema_beta(config: PPOConfig) -> float | None:
    """The decay of the actor's moving average, None without one."""
    return config.algorithm.ema_beta if config.algorithm.enable_ema else None


def served_model(config: ServeConfig) -> ModelConfig:
    """How the model of a reward server is loaded."""
    return ModelConfig(
        pretrain=config.reward_pretrain,
        bf16=config.bf16,
        flash_attn=config.flash_attn,
        load_in_4bit=config.load_in_4bit,
        disable_fast_tokenizer=config.disable_fast_tokenizer,
        value_head_prefix=config.value_head_prefix,
        trust_remote_code=config.trust_remote_code,
        use_ms=config.use_ms,
    )
