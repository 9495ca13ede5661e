"""The roles of an RL run on Ray: the loop's verbs, answered by groups of workers and by vLLM engines."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError
from torch import Tensor

from openrlhf.cluster.calls import RoleError, await_all
from openrlhf.cluster.engines import Engines
from openrlhf.cluster.group import Group
from openrlhf.cluster.placement import Placement, plan
from openrlhf.cluster.sampling import Sampling, partial_rollouts, rollouts_of_the_actor, whole_rollouts
from openrlhf.cluster.start import engine_dtype, engine_starter, gpus_there, start_workers
from openrlhf.cluster.watch import Line, Watch
from openrlhf.cluster.weight_sync import WeightSync, sync_backend
from openrlhf.config.commands import PPOConfig
from openrlhf.config.derived import evaluation_rollout, ranks_sharing_rows, reward_models
from openrlhf.config.groups import RolloutConfig
from openrlhf.rollout.agents import agent_of
from openrlhf.rollout.collect import collect, sampling_params, with_rewards
from openrlhf.rollout.engine import EnginesLost
from openrlhf.rollout.rewards import RewardFunction
from openrlhf.rollout.sources import reward_function
from openrlhf.rollout.stop_strings import decoder
from openrlhf.training.busy import BusyClock
from openrlhf.training.roles import Absent, Critic, PartLost, Reference, RewardModels, Roles, gather
from openrlhf.types import Batch, Metrics, Prompt, Sample


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


class ClusterRollout:
    """Collects, and brings new weights to what samples.

    Rollouts come in the order in which they were asked for. Reward functions have a line of their own: with rollouts
    ahead the engines go on meanwhile.
    """

    def __init__(
        self,
        sampling: Sampling,
        config: PPOConfig,
        tokenizer: Any,
        turns: Line,
        rewarding: Line,
        syncing: Line,
        deadline_s: float,
    ) -> None:
        """``turns``, ``rewarding`` and ``syncing`` have one thread each."""
        self.engines = sampling.engines
        self.held = sampling.held
        self.send = sampling.sync
        self.sync_line = turns if sampling.sync_waits else syncing
        self.deadline_s = deadline_s
        self.config = config
        self.tokenizer = tokenizer
        self.turns = turns
        self.lost: EnginesLost | None = None
        self.rewarding = rewarding
        chunk = config.rollout.micro_rollout_batch_size
        self.reward_function = reward_function(config.reward, chunk, isolated=True)
        self.agent = agent_of(config)

    def collect(self, prompts: list[Prompt], seed: int) -> Future[list[Sample]]:
        return self._ask(prompts, self.config.rollout, seed)

    def evaluate(self, prompts: list[Prompt], seed: int) -> Future[list[Sample]]:
        return self._ask(prompts, evaluation_rollout(self.config), seed)

    def sync(self, version: int) -> Future[None]:
        return self.sync_line.submit(self._sync, version)

    def _ask(self, prompts: list[Prompt], rollout: RolloutConfig, seed: int) -> Future[list[Sample]]:
        sampled, function = self.turns.submit(self._sample, prompts, rollout, seed), self.reward_function
        return sampled if function is None else self.rewarding.submit(self._reward, sampled, function)

    def _sample(self, prompts: list[Prompt], rollout: RolloutConfig, seed: int) -> list[Sample]:
        if self.lost is not None:
            raise self.lost
        params = sampling_params(rollout, (self.tokenizer.eos_token_id,), seed)
        with self.held():
            n = rollout.n_samples_per_prompt
            return collect(prompts, self.engines, params, n, self.tokenizer, None, self.agent)

    def _reward(self, sampled: Future[list[Sample]], function: RewardFunction) -> list[Sample]:
        (samples,) = gather(sampled, deadline_s=self.deadline_s)
        return with_rewards(samples, function, self.tokenizer)

    def _sync(self, version: int) -> None:
        """Without engines the step can still end, and save what it learnt: the next rollout tells."""
        try:
            self.send(version)
        except EnginesLost as lost:
            self.lost = lost


@contextmanager
def cluster_roles(config: PPOConfig, tokenizer: Any, total_steps: int, deadline_s: float) -> Iterator[Roles]:
    """Inside a ``ray_session``: start every worker and engine, yield the roles, and end them, whatever happened."""
    placement = plan(config)
    gpus = gpus_there() > 0
    watch = Watch(Path(config.checkpoint.save_path) / "stacks", deadline_s)
    executor, turns = Line(watch, 16, "role"), Line(watch, 1, "engines")
    rewarding, syncing = Line(watch, 1, "rewards"), Line(watch, 1, "sync")
    handles: list[Any] = []
    started: list[Any] = []  # the engines, which may be replaced by others
    busy = BusyClock()
    whole = True
    try:
        groups: dict[str, Group] = {}
        locks = {pool.name: threading.RLock() for pool in placement.pools}
        for pool in placement.pools:
            for role, workers in start_workers(pool, config, gpus, deadline_s).items():
                handles += workers
                groups[role] = Group(
                    role, workers, locks[pool.name], placement.roles_sleep, executor, deadline_s,
                    ranks_sharing_rows(config), partial(busy.add, pool.name),
                )  # fmt: skip
        actor = groups["actor"]
        for group in groups.values():
            watch.add(group.names, group.workers)
        places = range(placement.engines)
        names = [f"vLLM engine {i} of {len(places)}" for i in places]
        start_engine = engine_starter(placement, config, gpus, actor.workers, deadline_s)

        def start(place: int) -> Any:
            watch.check()
            engine = start_engine(place)
            watch.add(names[place : place + 1], [engine], engines=True)
            return engine

        started += [start(place) for place in places]
        start_groups(groups.values(), total_steps, deadline_s)
        sampling = rollouts_of_the_actor(actor)
        if started:
            backend, dtype = sync_backend(config.vllm.vllm_sync_backend, gpus, placement), engine_dtype(config)
            sync = WeightSync(actor, started, names, placement.engine_devices, backend, dtype, deadline_s)
            worked = actor.worked if placement.engines_share else partial(busy.add, "engines")
            engines = Engines(started, names, start, sync, deadline_s, worked)
            sampling = connected(engines, placement, config, tokenizer)
        if placement.roles_sleep:
            for group in groups.values():
                group.call("offload", [()] * len(group.workers))
        rollout = ClusterRollout(sampling, config, tokenizer, turns, rewarding, syncing, deadline_s)
        mini_batch = config.train.train_batch_size
        critic: Critic = ClusterCritic(groups["critic"], mini_batch) if "critic" in groups else Absent()
        reference: Reference = Absent()
        if "reference" in groups:
            reference = ClusterReference(groups["reference"], "log_probs")
        elif config.algorithm.init_kl_coef > 0:
            reference = ClusterReference(actor, "start_log_probs")
        models = len(reward_models(config))
        reward: RewardModels = ClusterReward(groups["reward"], models) if "reward" in groups else Absent()
        busy.take()  # what the start took
        watch.hangs_count = True
        yield Roles(
            rollout,
            ClusterActor(actor, mini_batch),
            critic,
            reference,
            reward,
            busy,
        )
    except (TimeoutError, PartLost) as failure:
        whole = False
        if isinstance(failure, TimeoutError) or isinstance(failure.__cause__, TimeoutError):
            watch.write_stacks()
        raise
    finally:
        watch.close()
        for handle in [*handles, *started]:
            ray.kill(handle)
        # What is left in line fails at once, as its workers are dead. A future that is cancelled in line would never
        # tell those that wait for it, and a thread that outlived Ray would never end.
        # But where a process is lost, this one ends at once, whatever its threads wait for.
        for line in (turns, rewarding, syncing, executor):
            line.shutdown(wait=whole)


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


def start_groups(groups: Iterable[Group], total_steps: int, deadline_s: float) -> None:
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
