"""Whether a run fits its GPUs, before it; and what was predicted, beside what happened, when it did not."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

import torch

from openrlhf.check.findings import Severity
from openrlhf.cluster.placement import plan as place
from openrlhf.config.commands import DPOConfig, KDConfig, KTOConfig, PPOConfig, RMConfig, TrainCommand
from openrlhf.config.derived import critic_source, reference_source, reward_models
from openrlhf.models.load import load_config
from openrlhf.plan.cluster import Accelerator, Cluster
from openrlhf.plan.estimate import (
    Room,
    Shapes,
    fixes,
    local_parts,
    rl_rooms,
    role_parts,
    shown,
    supervised_parts,
    supervised_room,
    too_full,
)
from openrlhf.plan.memory import CONTEXT, Parts, total, usable
from openrlhf.plan.shape import Shape, shape_of

OF_HOST = "can't allocate memory"  # what the CPU's allocator says
# What CUDA's allocator, that of the CPU, the system and Python say.
SIGNS = ("out of memory", OF_HOST, "cannot allocate memory", "memoryerror")
FIXES = 3


def look_at_memory(config: TrainCommand, cluster: Cluster, workers: int) -> Iterator[tuple[Severity, str]]:
    """Estimates, so that what is too large is a warning: texts may be shorter than the flags allow."""
    for room in rooms(config, cluster, workers):
        if room.fits:
            needs = f"{room.pool} takes about {total(room.parts) / 1e9:.1f} of {room.usable / 1e9:.1f} GB of a GPU"
            yield "ok", f"{needs} ({shown(room.parts)})"
        else:
            yield "warning", too_full(room, config)


def out_of_memory(config: object, error: BaseException) -> list[str]:
    """When memory ran out: what was predicted, what this process held, and the three cheapest ways out. Of any other
    error nothing is said."""
    said = _words(error)
    if not isinstance(config, TrainCommand) or not any(sign in said.lower() for sign in SIGNS):
        return []
    here = gpus_here()
    lines = ["memory ran out; `openrlhf plan` searches for layouts that fit"]
    parts: Parts = {}
    for name, needed in _predicted(config, here):
        parts = max(parts, needed, key=total)
        lines.append(f"predicted for {name}: {total(needed) / 1e9:.2f} GB ({shown(needed, 1e6)})")
    if here is not None:
        lines.append(f"this process held at most {torch.cuda.max_memory_allocated() / 1e9:.2f} GB on its GPU")
    else:
        held = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        lines.append(f"this process held at most {held / 1e9:.2f} GB, libraries included")
    ways = fixes(parts, config, alone=_alone(config))
    if isinstance(config, PPOConfig) and OF_HOST in said and not config.placement.local:
        rows = config.rollout.rollout_batch_size * config.rollout.n_samples_per_prompt
        ways = [f"lower --rollout_batch_size: the driver holds all samples of a step, here {rows:,}", *ways]
    return lines + [f"- {way}" for way in ways[:FIXES]]


def _predicted(config: TrainCommand, here: Cluster | None) -> Iterator[tuple[str, Parts]]:
    """Who needs which parts: GPUs, or processes on the CPU."""
    if here is not None:
        for room in rooms(config, here, int(os.environ.get("WORLD_SIZE", 1))):
            yield room.pool, room.parts
    elif not isinstance(config, PPOConfig):
        yield "this process", supervised_parts(config, shapes_of(config), 1, device="cpu")
    elif config.placement.local:
        yield "this process", local_parts(config, shapes_of(config), "cpu")
    else:
        shapes = shapes_of(config)
        for pool in place(config).pools:
            for role in pool.roles:
                held, work = role_parts(role, pool.devices, config, shapes, "cpu")
                yield f"a worker of {role}", {part: held.get(part, 0) + work.get(part, 0) for part in {**held, **work}}


def _alone(config: TrainCommand) -> bool:
    return config.placement.local if isinstance(config, PPOConfig) else "WORLD_SIZE" not in os.environ


def rooms(config: TrainCommand, cluster: Cluster, workers: int) -> list[Room]:
    shapes = shapes_of(config)
    if isinstance(config, PPOConfig):
        return _local_room(config, shapes, cluster) if config.placement.local else rl_rooms(config, shapes, cluster)
    return [supervised_room(config, shapes, cluster, workers)]


def _local_room(config: PPOConfig, shapes: Shapes, cluster: Cluster) -> list[Room]:
    return [
        Room("the process", 1, local_parts(config, shapes) | {"CUDA contexts": CONTEXT}, usable(cluster.gpu.memory))
    ]


def shapes_of(config: TrainCommand) -> Shapes:
    """Of the models that the flags name. Raises ValueError naming the flag of one that is not there."""
    model = config.model

    def shape(path: str, flag: str, scores: bool = False) -> Shape:
        return shape_of(load_config(path, model, flag), model, scores)

    policy = shape(model.pretrain, "--pretrain", isinstance(config, RMConfig))
    if isinstance(config, PPOConfig):
        critic = critic_source(config)
        rewards = [shape(path, "--reward_pretrain", scores=True) for path in reward_models(config)]
        return Shapes(policy, None if critic is None else shape(critic.path, "--critic_pretrain", True), rewards)
    if isinstance(config, KDConfig):
        return Shapes(policy, other=shape(config.distillation.teacher_model, "--teacher_model"))
    if isinstance(config, DPOConfig):
        own = model.lora_rank > 0 and reference_source(config) == model.pretrain
        return Shapes(policy, other=None if own else shape(reference_source(config), "--ref_pretrain"))
    return Shapes(policy, other=policy if isinstance(config, KTOConfig) and model.lora_rank == 0 else None)


def gpus_here() -> Cluster | None:
    """The GPUs of this machine, or None."""
    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    return Cluster(1, torch.cuda.device_count(), Accelerator(found.name, found.total_memory, 0.0, 0.0, 0.0))


def _words(error: BaseException | None) -> str:
    """What an error and those behind it say, with their names: of a Ray worker only the name comes through."""
    texts = []
    while error is not None:
        texts.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return " ".join(texts).replace("OutOfMemoryError", "out of memory")
