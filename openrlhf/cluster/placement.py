"""Flags → which roles share which devices. Pure planning; the only reader of the ``--colocate_*`` and sleep flags.

A *pool* is a set of devices with one lock: groups in the same pool take turns, groups in different pools run at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from openrlhf.config.commands import PPOConfig
from openrlhf.config.derived import critic_source, own_reference


@dataclass(frozen=True)
class Pool:
    """``nodes`` × ``per_node`` devices and who lives on them: role → number of workers, one on each device."""

    name: str
    nodes: int
    per_node: int
    roles: tuple[str, ...]

    @property
    def devices(self) -> int:
        return self.nodes * self.per_node


@dataclass(frozen=True)
class Placement:
    pools: tuple[Pool, ...]
    engines: int  # 0: the actor samples
    engine_devices: int  # devices of one engine: its tensor-parallel size
    engines_share: bool  # engines live in the pool of the actor
    roles_sleep: bool  # training states leave the devices between calls
    engines_sleep: bool

    @property
    def devices(self) -> int:
        """All devices the run needs."""
        own = 0 if self.engines_share else self.engines * self.engine_devices
        return sum(pool.devices for pool in self.pools) + own


def plan(config: PPOConfig) -> Placement:
    """Pools for the roles that the run has. Sizes were checked against each other by the rules of the configuration."""
    flags = config.placement
    sizes = {
        "actor": (flags.actor_num_nodes, flags.actor_num_gpus_per_node),
        "critic": (flags.critic_num_nodes, flags.critic_num_gpus_per_node),
        "reference": (flags.ref_num_nodes, flags.ref_num_gpus_per_node),
        "reward": (flags.reward_num_nodes, flags.reward_num_gpus_per_node),
    }
    roles = roles_of(config)
    pools = []
    for together in shared_sets(config):
        here = tuple(role for role in together if role in roles)
        if here:
            nodes, per_node = sizes[here[0]]
            pools.append(Pool("+".join(here), nodes, per_node, here))
    return Placement(
        pools=tuple(pools),
        engines=1 if config.vllm.vllm_num_engines is None else config.vllm.vllm_num_engines,
        engine_devices=config.vllm.vllm_tensor_parallel_size,
        engines_share=flags.colocate_all_models,
        roles_sleep=config.deepspeed.deepspeed_enable_sleep,
        engines_sleep=config.vllm.vllm_enable_sleep,
    )


def roles_of(config: PPOConfig) -> tuple[str, ...]:
    """The roles with a model of their own that this run needs, the engines apart."""
    wanted = {
        "actor": True,
        "critic": critic_source(config) is not None,
        "reference": own_reference(config),
        "reward": config.reward.reward_pretrain is not None,
    }
    return tuple(role for role, needed in wanted.items() if needed)


def shared_sets(config: PPOConfig) -> list[tuple[str, ...]]:
    """Which roles would share devices if the run had them all."""
    flags = config.placement
    if flags.colocate_all_models:
        return [("actor", "critic", "reference", "reward")]
    sets: list[tuple[str, ...]] = []
    sets += [("actor", "reference")] if flags.colocate_actor_ref else [("actor",), ("reference",)]
    sets += [("critic", "reward")] if flags.colocate_critic_reward else [("critic",), ("reward",)]
    return sets
