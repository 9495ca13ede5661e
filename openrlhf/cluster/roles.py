"""The roles of an RL run on Ray: the loop's verbs, answered by groups of workers and by vLLM engines."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ray.exceptions import RayTaskError
from torch import Tensor

from openrlhf.cluster.calls import RoleError, await_all
from openrlhf.cluster.engines import Engines
from openrlhf.cluster.group import Group
from openrlhf.cluster.placement import Placement, plan
from openrlhf.cluster.processes import Processes
from openrlhf.cluster.rollout import ClusterRollout
from openrlhf.cluster.sampling import Sampling, partial_rollouts, rollouts_of_the_actor, whole_rollouts
from openrlhf.cluster.start import engine_dtype, engine_starter, gpus_there, start_workers
from openrlhf.cluster.weight_sync import WeightSync, sync_backend
from openrlhf.config.commands import PPOConfig
from openrlhf.config.derived import ranks_sharing_rows, reward_models
from openrlhf.rollout.stop_strings import decoder
from openrlhf.training.busy import BusyClock
from openrlhf.training.roles import Absent, Critic, Reference, RewardModels, Roles
from openrlhf.types import Batch, Metrics


class ClusterActor:
    def __init__(self, group: Group, mini_batch: int) -> None:
        self.group = group
        self.mini_batch = mini_batch

    def log_probs(self, batch: Batch) -> Future[Tensor]:
        return self.group.submit_rows("log_probs", batch.inputs())

    def update(self, batch: Batch, kl_coef: float) -> Future[Metrics]:
        needed = batch.fill(values=None, returns=None)
        return self.group.submit_update(needed, self.mini_batch, kl_coef)

    def save_state(self, state: Path | None, weights: Path | None) -> Future[str | None]:
        return self.group.submit_reason("save_state", state, weights)

    def load_state(self, state: Path, redistribute: bool) -> Future[str | None]:
        return self.group.submit_reason("load_state", state, redistribute)


class ClusterCritic:
    def __init__(self, group: Group, mini_batch: int) -> None:
        self.group = group
        self.mini_batch = mini_batch

    def values(self, batch: Batch) -> Future[Tensor | None]:
        return self.group.submit_rows("values", batch.inputs())

    def update(self, batch: Batch) -> Future[Metrics | None]:
        needed = batch.inputs().fill(values=batch.values, returns=batch.returns)
        return self.group.submit_update(needed, self.mini_batch)

    def save_state(self, state: Path | None, weights: Path | None) -> Future[str | None]:
        return self.group.submit_reason("save_state", state, weights)

    def load_state(self, state: Path, redistribute: bool) -> Future[str | None]:
        return self.group.submit_reason("load_state", state, redistribute)


class ClusterReference:
    """Workers of its own, or the actor's, which know what they started from."""

    def __init__(self, group: Group, verb: str) -> None:
        self.group = group
        self.verb = verb

    def log_probs(self, batch: Batch) -> Future[Tensor | None]:
        return self.group.submit_rows(self.verb, batch.inputs())


class ClusterReward:
    def __init__(self, group: Group, models: int) -> None:
        self.group = group
        self.models = models

    def rewards(self, batch: Batch) -> tuple[Future[Tensor], ...]:
        return tuple(self.group.submit_rows("rewards", batch.inputs(), number) for number in range(self.models))


@contextmanager
def cluster_roles(config: PPOConfig, tokenizer: Any, total_steps: int, deadline_s: float) -> Iterator[Roles]:
    """Inside a ``ray_session``: start every worker and engine, yield the roles, and end them, whatever happened."""
    placement, gpus, busy = plan(config), gpus_there() > 0, BusyClock()
    processes = Processes(Path(config.checkpoint.save_path) / "stacks", deadline_s)
    with processes.ended_together():
        groups = start_groups(placement, config, gpus, processes, busy, deadline_s)
        engines = start_engines(placement, config, gpus, groups["actor"], processes, busy, deadline_s)
        form_groups(groups.values(), total_steps, deadline_s)
        sampling = (
            connected(engines, placement, config, tokenizer) if engines else rollouts_of_the_actor(groups["actor"])
        )
        if placement.roles_sleep:
            for group in groups.values():
                group.call("offload", [()] * len(group.workers))
        rollout = ClusterRollout(sampling, config, tokenizer, processes, deadline_s)
        roles = answering(groups, rollout, config, busy)
        busy.take()  # what the start took
        processes.watch.hangs_count = True
        yield roles


def start_groups(
    placement: Placement, config: PPOConfig, gpus: bool, processes: Processes, busy: BusyClock, deadline_s: float
) -> dict[str, Group]:
    """The workers of every role; those of one pool share its lock."""
    groups: dict[str, Group] = {}
    for pool in placement.pools:
        lock = threading.RLock()
        for role, workers in start_workers(pool, config, gpus, deadline_s).items():
            processes.workers += workers
            groups[role] = Group(
                role, workers, lock, placement.roles_sleep, processes.calls, deadline_s, ranks_sharing_rows(config),
                partial(busy.add, pool.name),
            )  # fmt: skip
    for group in groups.values():
        processes.watch.add(group.names, group.workers)
    return groups


def start_engines(
    placement: Placement,
    config: PPOConfig,
    gpus: bool,
    actor: Group,
    processes: Processes,
    busy: BusyClock,
    deadline_s: float,
) -> Engines | None:
    """The vLLM engines, which are yet to meet the actor; None where the actor's workers sample."""
    started, watch = processes.engines, processes.watch
    names = [f"vLLM engine {place} of {placement.engines}" for place in range(placement.engines)]
    start_engine = engine_starter(placement, config, gpus, actor.workers, deadline_s)

    def start(place: int) -> Any:
        watch.check()
        engine = start_engine(place)
        watch.add(names[place : place + 1], [engine], engines=True)
        return engine

    for place in range(placement.engines):
        started.append(start(place))
    if not started:
        return None
    backend, dtype = sync_backend(config.vllm.vllm_sync_backend, gpus, placement), engine_dtype(config)
    sync = WeightSync(actor, started, names, placement.engine_devices, backend, dtype, deadline_s)
    worked = actor.worked if placement.engines_share else partial(busy.add, "engines")
    return Engines(started, names, start, sync, deadline_s, worked)


def answering(groups: Mapping[str, Group], rollout: ClusterRollout, config: PPOConfig, busy: BusyClock) -> Roles:
    """The roles that the groups answer for; the others are absent."""
    actor, mini_batch, models = groups["actor"], config.train.train_batch_size, len(reward_models(config))
    critic: Critic = ClusterCritic(groups["critic"], mini_batch) if "critic" in groups else Absent()
    reference: Reference = Absent()
    if "reference" in groups:
        reference = ClusterReference(groups["reference"], "log_probs")
    elif config.algorithm.init_kl_coef > 0:
        reference = ClusterReference(actor, "start_log_probs")
    reward: RewardModels = ClusterReward(groups["reward"], models) if "reward" in groups else Absent()
    return Roles(rollout, ClusterActor(actor, mini_batch), critic, reference, reward, busy)


def form_groups(groups: Iterable[Group], total_steps: int, deadline_s: float) -> None:
    """Every group forms its process group and builds its model; all at once.

    Raises ValueError where a worker finds something wrong with what the user gave.
    """
    refs, names = [], []
    for group in groups:
        (place,) = await_all([group.workers[0].meeting_place.remote()], group.names[:1], "meeting_place", deadline_s)
        group.call("join", [place] * len(group.workers))
        refs += [worker.start.remote(total_steps) for worker in group.workers]
        names += group.names
    try:
        await_all(refs, names, "start", deadline_s)
    except RoleError as failure:
        if isinstance(cause := failure.__cause__, RayTaskError) and isinstance(cause.cause, ValueError):
            raise ValueError(str(cause.cause)) from failure
        raise


def connected(engines: Engines, placement: Placement, config: PPOConfig, tokenizer: Any) -> Sampling:
    """With engines that have met the actor, and sleep where they are to."""
    engines.meet()
    if config.model.load_in_4bit:
        engines.sync(0)  # they have loaded the weights as they were before they were quantised
    if placement.engines_sleep:
        engines.sleep()
    if config.rollout.partial_rollout:
        return partial_rollouts(engines, decoder(tokenizer))
    lock = engines.weights.actor.lock if placement.engines_share else threading.RLock()
    return whole_rollouts(engines, lock, placement.engines_sleep)
