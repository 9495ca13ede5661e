"""Which layouts of a run fit a cluster, and which of them are fastest: a search over flags that the user left open."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from openrlhf.config.commands import PPOConfig, TrainCommand, build, defaults, flat
from openrlhf.config.derived import role_sizes
from openrlhf.config.rules import broken
from openrlhf.config.rules.batches import check_workers
from openrlhf.plan.cluster import Cluster
from openrlhf.plan.estimate import Estimate, Shapes, estimate
from openrlhf.plan.memory import total

MICRO = (16, 8, 4, 2, 1)
WIDTHS = (1, 2, 4, 8)
# Every layout has these unless the user says otherwise: they save memory and cost little or nothing.
ALWAYS = {"bf16": True, "packing_samples": True, "gradient_checkpointing": True}


@dataclass(frozen=True)
class Layout:
    """``kind`` is colocated (taking turns), resident (colocated, nothing leaves the GPU), split, or async."""

    kind: str
    config: TrainCommand
    estimate: Estimate

    def words(self) -> list[str]:
        """The flags as a command line, without those that have their defaults."""
        default = defaults(type(self.config))
        line: list[str] = []
        for name, value in flat(self.config).items():
            if name != "wandb_run_name" and (name not in default or value != default[name]):
                values = value if isinstance(value, tuple) else (value,)
                line += [f"--{name}"] if value is True else [f"--{name}", *map(str, values)]
        return line


def search(
    command: type[TrainCommand], given: Mapping[str, Any], shapes: Shapes, cluster: Cluster
) -> tuple[list[Layout], list[Layout]]:
    """The layouts that fit, the fastest first, and those that do not, the nearest first.

    ``given`` are the user's flags, which no layout changes.
    """
    fitting: list[Layout] = []
    refused: list[Layout] = []
    for layout in _estimated(command, given, shapes, cluster):
        (refused if layout.estimate.problem else fitting).append(layout)
    fitting.sort(key=lambda layout: layout.estimate.step)
    refused.sort(key=lambda layout: max(total(room.parts) - room.usable for room in layout.estimate.rooms))
    return fitting, refused


def left_out(
    command: type[TrainCommand], given: Mapping[str, Any], cluster: Cluster, found: Iterable[Layout]
) -> dict[str, str]:
    """Of each kind of layout that is not among those ``found``, though no flag rules it out: the rule of the flags that
    it breaks even with one row at a time."""
    seen, reasons = {layout.kind for layout in found}, {}
    for kind, placed in _candidates(command, given, cluster):
        if kind in seen or kind in reasons:
            continue
        config = _with(command, given, placed, given.get("micro_train_batch_size", 1))
        problems = [*broken(config), *_shares(config, cluster)]
        if problems:
            reasons[kind] = problems[0]
    return reasons


def best(fitting: Iterable[Layout], number: int = 3) -> list[Layout]:
    """The fastest of each kind first, then the next fastest: three that differ say more than three alike."""
    every = list(fitting)
    kinds: dict[str, Layout] = {}
    for layout in every:
        kinds.setdefault(layout.kind, layout)
    chosen = list(kinds.values())[:number]
    chosen += [layout for layout in every if layout not in chosen][: number - len(chosen)]
    return sorted(chosen, key=lambda layout: layout.estimate.step)


def _estimated(
    command: type[TrainCommand], given: Mapping[str, Any], shapes: Shapes, cluster: Cluster
) -> Iterator[Layout]:
    """Of the sizes of a micro-batch the largest that fits, else the smallest that is allowed."""
    for kind, placed in _candidates(command, given, cluster):
        last = None
        for micro in [given["micro_train_batch_size"]] if "micro_train_batch_size" in given else MICRO:
            config = _with(command, given, placed, micro)
            if broken(config) or any(_shares(config, cluster)):
                continue
            last = Layout(kind, config, estimate(config, shapes, cluster))
            if last.estimate.problem is None:
                break
        if last is not None:
            yield last


def _candidates(
    command: type[TrainCommand], given: Mapping[str, Any], cluster: Cluster
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Kinds and flags that contradict none of the given ones."""
    for kind, placed in _rl(given, cluster) if command is PPOConfig else _supervised(given, cluster):
        if all(given.get(name, value) == value for name, value in placed.items()):
            yield kind, placed


def _with(command: type[TrainCommand], given: Mapping[str, Any], placed: Mapping[str, Any], micro: int) -> TrainCommand:
    sizes = {"micro_train_batch_size": micro}
    sizes |= {"micro_rollout_batch_size": micro} if command is PPOConfig else {}
    config: TrainCommand = build(command, {**ALWAYS, **placed, **sizes, **given})  # type: ignore[type-var]
    return config


def _shares(config: TrainCommand, cluster: Cluster) -> Iterator[str]:
    """Why the processes of a supervised command cannot divide a mini-batch; of RL that is a rule of the flags."""
    if not isinstance(config, PPOConfig):
        sharing = config.model.ring_attn_size * config.deepspeed.ds_tensor_parallel_size
        if cluster.gpus % sharing:
            flag = "--ring_attn_size" if config.model.ring_attn_size > 1 else "--ds_tensor_parallel_size"
            yield f"{flag} {sharing} does not divide the {cluster.gpus} GPUs: choose a divisor."
            return
        try:
            check_workers(config.train, cluster.gpus // sharing, "")
        except ValueError as error:
            yield str(error)


def _stages(given: Mapping[str, Any], cluster: Cluster) -> Sequence[int]:
    """The one that is given, else those that divide something: alone there is nothing to divide."""
    if "zero_stage" in given:
        return (given["zero_stage"],)
    return (2, 3) if cluster.gpus > 1 else (2,)


def _supervised(given: Mapping[str, Any], cluster: Cluster) -> Iterator[tuple[str, dict[str, Any]]]:
    for stage, offload in product(_stages(given, cluster), (False, True)):
        yield f"ZeRO {stage}", {"zero_stage": stage} | ({"adam_offload": True} if offload else {})


def _rl(given: Mapping[str, Any], cluster: Cluster) -> Iterator[tuple[str, dict[str, Any]]]:
    roles = set(role_sizes(build(PPOConfig, given)))
    for stage, width, offload in product(_stages(given, cluster), WIDTHS, (False, True)):
        if width > cluster.per_node or cluster.gpus % width:
            continue
        common = {"zero_stage": stage, "vllm_tensor_parallel_size": width} | ({"adam_offload": True} if offload else {})
        whole = _on(dict.fromkeys(roles, (cluster.nodes, cluster.per_node)))
        together = {**common, **whole, "colocate_all_models": True, "vllm_num_engines": cluster.gpus // width}
        asleep = {"vllm_enable_sleep": True, "deepspeed_enable_sleep": True}
        yield "colocated", {**together, **asleep, "vllm_gpu_memory_utilization": 0.85}
        for share in (0.6, 0.45, 0.3):
            yield "resident", {**together, "vllm_gpu_memory_utilization": share}
        for actor, critic, engines in _splits(cluster, bool(roles & {"critic", "reward"})):
            if engines % width:
                continue
            sizes = {"actor": actor, "ref": actor, "critic": critic, "reward": critic}
            apart = {
                **common, **_on({role: sizes[role] for role in roles}),
                **({"colocate_actor_ref": True} if "ref" in roles else {}),
                **({"colocate_critic_reward": True} if {"critic", "reward"} <= roles else {}),
                "vllm_num_engines": engines // width, "vllm_gpu_memory_utilization": 0.9,
            }  # fmt: skip
            yield "split", apart
            yield "async", {**apart, "async_train": True, "enable_vllm_is_correction": True}


def _splits(cluster: Cluster, two_pools: bool) -> Iterator[tuple[tuple[int, int], tuple[int, int], int]]:
    """(nodes, GPUs) of the actor's and of the critic's pool, and the GPUs of the engines, which get the rest: whole
    machines where there are several, else parts of the one. Without ``two_pools`` the critic's has none."""
    several = cluster.nodes > 1
    units, each = (cluster.nodes, cluster.per_node) if several else (cluster.per_node, 1)
    for actor in range(1, units):
        for critic in range(1, units - actor) if two_pools else (0,):
            sizes = [(number, each) if several else (1, number) for number in (actor, critic)]
            yield sizes[0], sizes[1], (units - actor - critic) * each


def _on(sizes: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    flags: dict[str, int] = {}
    for role, (nodes, gpus) in sizes.items():
        flags |= {f"{role}_num_nodes": nodes, f"{role}_num_gpus_per_node": gpus}
    return flags
