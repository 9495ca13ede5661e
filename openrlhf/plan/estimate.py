"""The memory and the seconds of a run, from its configuration, the shapes of its models and a cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from openrlhf.backends.hf_generate import ROWS_AT_ONCE
from openrlhf.cluster.placement import Placement
from openrlhf.cluster.placement import Pool as Devices
from openrlhf.cluster.placement import plan as place
from openrlhf.config.commands import DPOConfig, KDConfig, KTOConfig, PPOConfig, RMConfig, TrainCommand, flat
from openrlhf.config.derived import own_reference, role_sizes, starts_from
from openrlhf.plan import seconds
from openrlhf.plan.cluster import Cluster
from openrlhf.plan.memory import (
    CONTEXT,
    FRAGMENTS,
    HOST,
    Parts,
    busiest,
    engine_weights,
    in_host_memory,
    kv_slots,
    number_bytes,
    states,
    total,
    usable,
    working_set,
)
from openrlhf.plan.shape import Shape, frozen
from openrlhf.training.micro_batches import Size, rollout_size, train_size
from openrlhf.training.ppo import needs_old_log_probs

WORTH = 0.05  # share of the whole below which a part is not worth a flag
# How often a role that sleeps is woken in a step: for log-probs or values, the update, and the actor for the sync.
WAKES = {"actor": 3, "critic": 2, "reference": 1, "reward": 1}


Fix = Callable[[str, str, bool], None]  # the part, the way out in words, whether it is still open


@dataclass(frozen=True)
class Shapes:
    """Of the models of a run. ``other`` is the reference or teacher of a supervised command."""

    policy: Shape
    critic: Shape | None = None
    rewards: Sequence[Shape] = ()
    other: Shape | None = None


@dataclass(frozen=True)
class Room:
    """One device of a pool when it is fullest: bytes by component, and how many there are to use. ``host`` are those
    that wait for it in host memory."""

    pool: str
    devices: int
    parts: Parts
    usable: float
    host: float = 0.0

    @property
    def fits(self) -> bool:
        return total(self.parts) <= self.usable


@dataclass(frozen=True)
class Estimate:
    """``problem`` is why the run cannot be, None when it can: a sentence that names the flag to change.

    ``phases`` are the seconds of a step, ``step`` those of all, where phases of ``--async_train`` overlap.
    """

    rooms: list[Room]
    slots: int = 0
    phases: dict[str, float] = field(default_factory=dict)
    step: float = 0.0
    binds: str = ""
    problem: str | None = None


def estimate(config: TrainCommand, shapes: Shapes, cluster: Cluster) -> Estimate:
    """Of a supervised command on all devices of the cluster, or of RL as its flags place it."""
    if not isinstance(config, PPOConfig):
        return _supervised(config, shapes, cluster)
    placement, rooms = place(config), rl_rooms(config, shapes, cluster)
    length = config.prompts.prompt_max_len + config.rollout.generate_max_len
    share, width = config.vllm.vllm_gpu_memory_utilization, placement.engine_devices
    slots = kv_slots(shapes.policy, cluster.gpu.memory, share, width, length)
    problem = _problem(rooms, slots, config, shapes, cluster)
    if problem is not None:
        return Estimate(rooms, slots, problem=problem)
    phases, slow_host = _phases(config, placement, shapes, cluster, slots)
    ahead = config.rollout.async_train
    learning = sum(phases.values()) - phases["generate"]
    step = max(phases["generate"], learning) if ahead else phases["generate"] + learning
    return Estimate(rooms, slots, phases, step, _binds(phases, slow_host, config, cluster, placement, shapes))


# Memory ---------------------------------------------------------------------------------------------------------------


def rl_rooms(config: PPOConfig, shapes: Shapes, cluster: Cluster) -> list[Room]:
    """The pools of the models, and that of the engines where they have one."""
    placement = place(config)
    rooms = [_room(pool, placement, config, shapes, cluster) for pool in placement.pools]
    return rooms if placement.engines_share else [*rooms, _engine_room(placement, config, shapes, cluster)]


def supervised_room(config: TrainCommand, shapes: Shapes, cluster: Cluster, workers: int) -> Room:
    parts = supervised_parts(config, shapes, workers) | {"CUDA contexts": CONTEXT}
    host = in_host_memory(shapes.policy, config.model, config.deepspeed, workers)
    return Room("model", workers, parts, usable(cluster.gpu.memory), host)


def local_parts(config: PPOConfig, shapes: Shapes, device: str = "cuda") -> Parts:
    """Of ``--local``: every role in one process, which writes texts with the actor's own weights."""
    alone = replace(config, deepspeed=replace(config.deepspeed, zero_stage=0))
    names = ["reference" if name == "ref" else name for name in role_sizes(config)]
    roles = [role_parts(name, 1, alone, shapes, device) for name in names]
    texts = min(ROWS_AT_ONCE, config.rollout.rollout_batch_size * config.rollout.n_samples_per_prompt)
    cache = texts * _length(config) * shapes.policy.kv_bytes * number_bytes(config.model) / 2
    moments = [{"attention cache": cache}, *(work for _, work in roles)]
    return _sum(*(held for held, _ in roles), max(moments, key=total))


def role_parts(role: str, workers: int, config: PPOConfig, shapes: Shapes, device: str = "cuda") -> tuple[Parts, Parts]:
    """What a role holds all the time, and what it works with."""
    model, sharding, length = config.model, config.deepspeed, _length(config)
    tokens, scored = trained_tokens(config, length), _tokens(rollout_size(config), length)
    if role in ("actor", "critic"):
        shape = shapes.policy if role == "actor" else shapes.critic or shapes.policy
        work = busiest(shape, model, sharding, workers, max(tokens, scored), device)
        return states(shape, model, sharding, workers), work
    several = [shapes.policy] if role == "reference" else list(shapes.rewards)
    held: Parts = {}
    for shape in map(frozen, several):
        if not config.reward.ref_reward_offload:
            held = _sum(held, states(shape, model, sharding, workers))
    widest = max(several, key=lambda shape: shape.parameters)
    return held, working_set(frozen(widest), model, sharding, scored, device)


def _room(pool: Devices, placement: Placement, config: PPOConfig, shapes: Shapes, cluster: Cluster) -> Room:
    roles = [role_parts(role, pool.devices, config, shapes) for role in pool.roles]
    engine = _engine_parts(placement, config, shapes, cluster) if placement.engines_share else {}
    host = sum(_host(role, pool.devices, config, shapes) for role in pool.roles)
    if placement.roles_sleep:
        resident: Parts = {}
        host += sum(total(held) for held, _ in roles)
        learning = max((_sum(held, work) for held, work in roles), key=total)
    else:
        resident = _sum(*(held for held, _ in roles))
        learning = _sum(resident, max((work for _, work in roles), key=total))
    moments = [learning if placement.engines_sleep else _sum(learning, engine), _sum(resident, engine)]
    contexts = {"CUDA contexts": CONTEXT * (len(pool.roles) + bool(engine))}
    return Room(pool.name, pool.devices, _sum(max(moments, key=total), contexts), usable(cluster.gpu.memory), host)


def _host(role: str, workers: int, config: PPOConfig, shapes: Shapes) -> float:
    if role in ("actor", "critic"):
        shape = shapes.policy if role == "actor" else shapes.critic or shapes.policy
        return in_host_memory(shape, config.model, config.deepspeed, workers)
    several = [shapes.policy] if role == "reference" else list(shapes.rewards)
    offloaded = config.reward.ref_reward_offload
    return sum(2 * shape.parameters / workers for shape in several) if offloaded else 0.0


def _engine_room(placement: Placement, config: PPOConfig, shapes: Shapes, cluster: Cluster) -> Room:
    devices = placement.engines * placement.engine_devices
    # vLLM takes its share of the card whole, and keeps room for itself within it.
    return Room("engines", devices, _engine_parts(placement, config, shapes, cluster), cluster.gpu.memory)


def _engine_parts(placement: Placement, config: PPOConfig, shapes: Shapes, cluster: Cluster) -> Parts:
    weights = engine_weights(shapes.policy, placement.engine_devices)
    share = config.vllm.vllm_gpu_memory_utilization * cluster.gpu.memory
    return {"engine weights": weights, "attention cache": max(0.0, share - weights)}


def _problem(rooms: Sequence[Room], slots: int, config: PPOConfig, shapes: Shapes, cluster: Cluster) -> str | None:
    if slots < 1:
        return _no_engine(config, shapes, cluster)
    return next((problem for room in rooms if (problem := too_much(room, config))), None)


def _no_engine(config: PPOConfig, shapes: Shapes, cluster: Cluster) -> str:
    width, share = config.vllm.vllm_tensor_parallel_size, config.vllm.vllm_gpu_memory_utilization
    weights, length, gpu = engine_weights(shapes.policy, width) / 1e9, _length(config), cluster.gpu.memory
    found = (
        f"an engine of --vllm_tensor_parallel_size {width} with --vllm_gpu_memory_utilization {share:g} has no room "
        f"for one text of {length} tokens beside its weights of {weights:.1f} GB"
    )
    if kv_slots(shapes.policy, gpu, 1 - FRAGMENTS, cluster.per_node, length) > 0:
        return f"{found}: raise one of the two"
    least = engine_weights(shapes.policy, cluster.per_node) / 1e9
    return (
        f"{found}, and an engine cannot leave its machine, whose {cluster.per_node} GPUs would hold {least:.1f} GB of "
        f"weights each; use GPUs with more than {gpu / 1e9:.0f} GB, or machines with more of them"
    )


def too_much(room: Room, config: TrainCommand) -> str | None:
    """Why a pool cannot be, for its GPUs or for the memory of their host; None when it can."""
    if not room.fits:
        return too_full(room, config)
    if room.host <= HOST:
        return None
    more = " (--actor_num_nodes)" if isinstance(config, PPOConfig) else ""
    sleep = " or --deepspeed_enable_sleep" if isinstance(config, PPOConfig) else ""
    return (
        f"{room.pool} keeps {room.host / 1e9:.0f} GB in host memory for each GPU, and machines have about "
        f"{HOST / 1e9:.0f}: use more GPUs{more}, or leave out --adam_offload{sleep}"
    )


def too_full(room: Room, config: TrainCommand) -> str:
    """One sentence: what is too large, and the flags that make the largest parts smaller."""
    return (
        f"{room.pool} needs {total(room.parts) / 1e9:.1f} GB on a GPU that has {room.usable / 1e9:.1f} to use "
        f"({shown(room.parts)}): {'; or '.join(fixes(room.parts, config)[:3])}"
    )


def fixes(parts: Parts, config: TrainCommand, alone: bool = False) -> list[str]:
    """Flags that would take memory from the largest parts, the cheapest in time first. ``alone`` is one process, which
    has nobody to divide anything with."""
    model, train = config.model, config.train
    largest = sorted(parts, key=lambda name: -parts[name])
    # The first way of every part comes before any second, the largest part first.
    found: list[tuple[int, int, str]] = []

    def fix(part: str, words: str, useful: bool) -> None:
        if useful and parts.get(part, 0.0) > WORTH * total(parts):
            rank = largest.index(part)
            found.append((sum(other == rank for _, other, _ in found), rank, words))

    recomputes = model.gradient_checkpointing
    fix("activations", "give --gradient_checkpointing", not recomputes)
    if train.use_dynamic_batch:
        fix("activations", "lower --train_max_tokens_per_gpu", True)
    else:
        fix("activations", "lower --micro_train_batch_size to 1", train.micro_train_batch_size > 1)
    if alone:
        _fixes_alone(config, fix)
    else:
        _fixes_together(config, fix)
    ordered = [words for *_, words in sorted(found)]
    return ordered or ["use GPUs with more memory, or more of them"]


def _fixes_alone(config: TrainCommand, fix: Fix) -> None:
    fix("optimizer", "train an adapter with --lora_rank 32", config.model.lora_rank == 0)
    if isinstance(config, PPOConfig):
        fix("activations", "shorten answers with --generate_max_len", True)
        fix("attention cache", "ask for fewer answers at a time with --rollout_batch_size", True)
        fix("weights", "leave the reference out with --init_kl_coef 0", own_reference(config))
        return
    fix("activations", "shorten texts with --max_len", True)


def _fixes_together(config: TrainCommand, fix: Fix) -> None:
    model, sharding, stage = config.model, config.deepspeed, config.deepspeed.zero_stage
    fix("activations", "spread texts over more GPUs with --ring_attn_size", model.ring_attn_size == 1)
    fix("optimizer", "partition more with --zero_stage 2", stage < 2)
    fix("weights", "partition the weights with --zero_stage 3", stage < 3)
    fix("optimizer", "keep the optimizer in host memory with --adam_offload", not sharding.adam_offload)
    fix("gradients for the step", "use --zero_stage 3, whose step is made piece by piece", stage < 3)
    fix("optimizer", "use more GPUs (--actor_num_nodes, --actor_num_gpus_per_node)", isinstance(config, PPOConfig))
    fix("optimizer", "train an adapter with --lora_rank 32", model.lora_rank == 0)
    if isinstance(config, PPOConfig):
        fix("attention cache", "free the engines' memory with --vllm_enable_sleep", not config.vllm.vllm_enable_sleep)
        fix("attention cache", "lower --vllm_gpu_memory_utilization", True)
        fix("weights", "let states leave the GPU with --deepspeed_enable_sleep", not sharding.deepspeed_enable_sleep)
        fix("weights", "keep frozen models in host memory with --ref_reward_offload", own_reference(config))


def shown(parts: Parts, least: float = 5e7) -> str:
    """The parts of at least ``least`` bytes in gigabytes, the largest first."""
    every = sorted(parts.items(), key=lambda item: -item[1])
    digits = 1 if least >= 5e7 else 3
    return ", ".join(f"{name} {size / 1e9:.{digits}f}" for name, size in every if size >= least)


def _sum(*several: Parts) -> Parts:
    whole: Parts = {}
    for parts in several:
        for name, size in parts.items():
            whole[name] = whole.get(name, 0.0) + size
    return whole


# Time -----------------------------------------------------------------------------------------------------------------


def _phases(
    config: PPOConfig, placement: Placement, shapes: Shapes, cluster: Cluster, slots: int
) -> tuple[dict[str, float], bool]:
    rollout, length = config.rollout, _length(config)
    rows = rollout.rollout_batch_size * rollout.n_samples_per_prompt
    tokens = rows * length
    generating, slow_host = seconds.generate(
        shapes.policy, cluster, placement.engine_devices, rows / placement.engines, slots,
        config.prompts.prompt_max_len, rollout.generate_max_len,
    )  # fmt: skip
    # Pools work at once, the roles of a pool one after the other.
    scoring, updating, sleeping = [0.0], [0.0], [0.0]
    for pool in placement.pools:
        roles = pool.roles
        scoring.append(sum(_score(role, pool.devices, tokens, config, shapes, cluster) for role in roles))
        learns = [role for role in roles if role in ("actor", "critic")]
        updating.append(sum(_update(role, pool.devices, rows, config, shapes, cluster) for role in learns))
        if placement.roles_sleep:
            held = [WAKES[role] * total(role_parts(role, pool.devices, config, shapes)[0]) for role in roles]
            sleeping.append(seconds.to_host_and_back(sum(held)))
    moved = 2 * shapes.policy.parameters / (cluster.gpu.bandwidth if placement.engines_share else cluster.network)
    phases = {"generate": generating, "log_probs": max(scoring), "update": max(updating), "sync": moved}
    return phases | ({"sleep": max(sleeping)} if placement.roles_sleep else {}), slow_host


def _score(role: str, devices: int, tokens: float, config: PPOConfig, shapes: Shapes, cluster: Cluster) -> float:
    if role == "actor":
        adapted = config.algorithm.init_kl_coef > 0 and starts_from(config.model, config.model.pretrain)
        passes = needs_old_log_probs(config) + adapted
        return passes * _forward(shapes.policy, devices, tokens, config, cluster)
    several = {"critic": [shapes.critic or shapes.policy], "reference": [shapes.policy]}.get(role, shapes.rewards)
    return sum(_forward(shape, devices, tokens, config, cluster) for shape in several)


def _forward(shape: Shape, devices: int, tokens: float, config: PPOConfig, cluster: Cluster) -> float:
    """Of a scoring pass, which at stage 3 sends the weights once a micro-batch where an update does three times."""
    length = _length(config)
    working = seconds.forward(shape, cluster, devices, tokens, length)
    if config.deepspeed.zero_stage < 3:
        return working
    sharing = config.model.ring_attn_size * config.deepspeed.ds_tensor_parallel_size
    micro_batches = tokens / (devices / sharing * _tokens(rollout_size(config), length))
    return max(working, seconds.gathering(shape, cluster, devices, micro_batches) / 3)


def _update(role: str, devices: int, rows: int, config: PPOConfig, shapes: Shapes, cluster: Cluster) -> float:
    shape = shapes.policy if role == "actor" else shapes.critic or shapes.policy
    return config.train.max_epochs * _pass(shape, devices, rows, _length(config), config, cluster)


def _pass(shape: Shape, devices: int, rows: int, length: int, config: TrainCommand, cluster: Cluster) -> float:
    """Seconds of learning from ``rows`` texts once."""
    working = seconds.train(shape, cluster, devices, rows * length, length)
    if config.deepspeed.zero_stage == 3:
        sharing = config.model.ring_attn_size * config.deepspeed.ds_tensor_parallel_size
        micro_batches = rows * length / (devices / sharing * trained_tokens(config, length))
        working = max(working, seconds.gathering(shape, cluster, devices, micro_batches))
    if config.deepspeed.adam_offload:
        steps = max(1, rows // config.train.train_batch_size)
        working += steps * seconds.to_host_and_back(12 * shape.learns / devices)
    return working


def _binds(
    phases: dict[str, float], slow_host: bool, config: PPOConfig, cluster: Cluster, placement: Placement, shapes: Shapes
) -> str:
    """What the longest phase waits for."""
    longest = max(phases, key=lambda name: phases[name])
    if longest == "generate":
        if slow_host:
            return "generate: the engine's own work between steps; sample more texts at a time"
        context = config.prompts.prompt_max_len + config.rollout.generate_max_len / 2
        rows = config.rollout.rollout_batch_size * config.rollout.n_samples_per_prompt
        cache = rows / placement.engines * context * shapes.policy.kv_bytes
        if engine_weights(shapes.policy, 1) > cache:
            return "generate: every token reads all weights; more samples a step or --async_train, not more GPUs"
        return "generate: the attention cache is read for every token; more engines divide it"
    if longest == "sleep":
        return "sleep: states travel to host memory and back; a larger rollout batch pays for it"
    if longest == "update" and config.deepspeed.zero_stage == 3:
        tokens = trained_tokens(config, _length(config))
        larger = "--train_max_tokens_per_gpu" if config.train.use_dynamic_batch else "--micro_train_batch_size"
        least = seconds.break_even(cluster, placement.pools[0].devices)
        if tokens < least:
            return (
                f"update: --zero_stage 3 sends its weights for micro-batches of {tokens:.0f} tokens, and {least:.0f} "
                f"would hide it: raise {larger}, or keep weights near with --zpg"
            )
    return f"{longest}: the arithmetic of the GPUs"


def _length(config: PPOConfig) -> int:
    return config.prompts.prompt_max_len + config.rollout.generate_max_len


# Supervised commands --------------------------------------------------------------------------------------------------


def _supervised(config: TrainCommand, shapes: Shapes, cluster: Cluster) -> Estimate:
    assert not isinstance(config, PPOConfig)
    length, texts = text_length(config), texts_of_row(config)
    room = supervised_room(config, shapes, cluster, cluster.gpus)
    if (problem := too_much(room, config)) is not None:
        return Estimate([room], problem=problem)
    rows = config.train.train_batch_size * texts
    phases = {"update": _pass(shapes.policy, cluster.gpus, rows, length, config, cluster)}
    if shapes.other is not None:
        phases["reference"] = seconds.forward(shapes.other, cluster, cluster.gpus, rows * length, length)
    elif isinstance(config, DPOConfig | KTOConfig):
        phases["reference"] = seconds.forward(shapes.policy, cluster, cluster.gpus, rows * length, length)
    longest = max(phases, key=lambda name: phases[name])
    return Estimate([room], phases=phases, step=sum(phases.values()), binds=f"{longest}: the arithmetic of the GPUs")


def supervised_parts(
    config: TrainCommand, shapes: Shapes, workers: int, length: float | None = None, device: str = "cuda"
) -> Parts:
    """On one of ``workers`` devices, where texts have ``length`` tokens, --max_len when it is not given."""
    assert not isinstance(config, PPOConfig)
    model, sharding = config.model, config.deepspeed
    if device == "cpu":  # one process, without DeepSpeed
        sharding = replace(sharding, zero_stage=0)
    tokens = trained_tokens(config, length or text_length(config))
    held = states(shapes.policy, model, sharding, workers)
    parts = _sum(held, busiest(shapes.policy, model, sharding, workers, tokens, device))
    if shapes.other is not None and not _offloaded(config):
        parts = _sum(parts, states(frozen(shapes.other), model, sharding, workers))
    return parts


def _offloaded(config: TrainCommand) -> bool:
    if isinstance(config, DPOConfig):
        return config.preference.ref_offload
    if isinstance(config, KTOConfig):
        return config.kto.ref_offload
    return isinstance(config, KDConfig) and config.distillation.teacher_offload


def trained_tokens(config: TrainCommand, length: float) -> float:
    """Of a micro-batch of texts of ``length`` tokens, on all GPUs of a ring."""
    return _tokens(train_size(config.train, config.model, texts_of_row(config)), length)


def _tokens(size: Size, length: float) -> float:
    """A text that is longer than its budget is alone in a micro-batch."""
    return size * length if isinstance(size, int) else max(float(size.tokens), size.rows * length)


def texts_of_row(config: TrainCommand) -> int:
    """A pair is two texts; KTO compares an answer with a mismatched one."""
    return 2 if isinstance(config, DPOConfig | RMConfig | KTOConfig) else 1


def text_length(config: TrainCommand) -> int:
    length: int = flat(config)["max_len"]
    return length
