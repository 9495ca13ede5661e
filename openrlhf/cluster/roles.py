"""The roles of an RL run on Ray: the loop's verbs, answered by groups of workers and by vLLM engines."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import ray
from torch import Tensor

from openrlhf.cluster.calls import ask, await_all, await_timed
from openrlhf.cluster.group import Group
from openrlhf.cluster.placement import plan
from openrlhf.cluster.start import engine_dtype, gpus_there, start_engines, start_workers
from openrlhf.cluster.weight_sync import WeightSync, sync_backend
from openrlhf.config.commands import PPOConfig
from openrlhf.config.derived import evaluation_rollout, ranks_sharing_rows, reward_models
from openrlhf.config.groups import RolloutConfig
from openrlhf.rollout.agents import agent_of
from openrlhf.rollout.collect import collect, sampling_params, with_rewards
from openrlhf.rollout.engine import Completion, SamplingParams, params_of_each
from openrlhf.rollout.rewards import RewardFunction
from openrlhf.rollout.sources import reward_function
from openrlhf.training.busy import BusyClock
from openrlhf.training.roles import Absent, Critic, Reference, RewardModels, Roles, gather
from openrlhf.types import Batch, Metrics, Prompt, Sample


class ClusterActor:
    def __init__(self, group: Group, mini_batch: int) -> None:
        self.group = group
        self.mini_batch = mini_batch

    def log_probs(self, batch: Batch) -> Future[Tensor]:
        return self.group.submit_rows("log_probs", batch.inputs())

    def update(self, batch: Batch, kl_coef: float) -> Future[Metrics]:
        return self.group.submit_update(batch, self.mini_batch, kl_coef)

    def save(self, folder: Path) -> Future[Any]:
        return self.group.submit("save", folder)

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
        return self.group.submit_update(batch, self.mini_batch)

    def save(self, folder: Path) -> Future[Any]:
        return self.group.submit("save", folder)

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


class Engines:
    """Several vLLM engines as one rollout engine: the prompts are divided evenly, in order."""

    def __init__(
        self, engines: list[Any], deadline_s: float, worked: Callable[[float], None] = lambda seconds: None
    ) -> None:
        """``worked`` hears how long each call kept the slowest engine busy."""
        self.engines = engines
        self.names = [f"vLLM engine {i} of {len(engines)}" for i in range(len(engines))]
        self.deadline_s = deadline_s
        self.worked = worked

    def generate(self, prompts: list[list[int]], params: SamplingParams | Sequence[SamplingParams]) -> list[Completion]:
        # Seeds are numbered over all prompts, so the number of engines does not change what is sampled.
        each = params_of_each(params, len(prompts))
        cut = [round(i * len(prompts) / len(self.engines)) for i in range(len(self.engines) + 1)]
        arguments = [(prompts[a:b], each[a:b]) for a, b in pairwise(cut)]
        parts = self._call("generate", arguments)
        return [completion for part in parts for completion in part]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Slow: through the object store. Runs use ``WeightSync``."""
        held = ray.put(list(weights))
        self._call("load_weights", [(held, version)] * len(self.engines))

    def sleep(self) -> None:
        self._call("sleep", [()] * len(self.engines))

    def wake(self) -> None:
        self._call("wake", [()] * len(self.engines))

    def _call(self, verb: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        refs = [ask(engine, verb, *args) for engine, args in zip(self.engines, arguments, strict=True)]
        answers, seconds = await_timed(refs, self.names, verb, self.deadline_s)
        self.worked(seconds)
        return answers


class ClusterRollout:
    """Collects with the engines and syncs them; holds their devices while they generate or take weights.

    Whatever the engines do comes in the order in which it was asked for, so a sync waits for the generation under way
    and each sample is of one version of the weights. Reward functions have a line of their own: with rollouts ahead
    the engines go on meanwhile.
    """

    def __init__(
        self,
        engines: Engines,
        sync: WeightSync,
        lock: threading.RLock,
        sleeps: bool,
        config: PPOConfig,
        tokenizer: Any,
        turns: ThreadPoolExecutor,
        rewarding: ThreadPoolExecutor,
    ) -> None:
        """``turns`` and ``rewarding`` have one thread each."""
        self.engines = engines
        self.weights = sync
        self.lock = lock
        self.sleeps = sleeps
        self.config = config
        self.tokenizer = tokenizer
        self.turns = turns
        self.rewarding = rewarding
        chunk = config.rollout.micro_rollout_batch_size
        self.reward_function = reward_function(config.reward, chunk, isolated=True)
        self.agent = agent_of(config)

    def collect(self, prompts: list[Prompt], seed: int) -> Future[list[Sample]]:
        return self._ask(prompts, self.config.rollout, seed)

    def evaluate(self, prompts: list[Prompt], seed: int) -> Future[list[Sample]]:
        return self._ask(prompts, evaluation_rollout(self.config), seed)

    def sync(self, version: int) -> Future[None]:
        return self.turns.submit(self._sync, version)

    @contextmanager
    def awake(self) -> Iterator[None]:
        with self.lock:
            if self.sleeps:
                self.engines.wake()
            yield
            if self.sleeps:
                self.engines.sleep()

    def _ask(self, prompts: list[Prompt], rollout: RolloutConfig, seed: int) -> Future[list[Sample]]:
        sampled, function = self.turns.submit(self._sample, prompts, rollout, seed), self.reward_function
        return sampled if function is None else self.rewarding.submit(self._reward, sampled, function)

    def _sample(self, prompts: list[Prompt], rollout: RolloutConfig, seed: int) -> list[Sample]:
        params = sampling_params(rollout, (self.tokenizer.eos_token_id,), seed)
        with self.awake():
            n = rollout.n_samples_per_prompt
            return collect(prompts, self.engines, params, n, self.tokenizer, None, self.agent)

    def _reward(self, sampled: Future[list[Sample]], function: RewardFunction) -> list[Sample]:
        (samples,) = gather(sampled, deadline_s=self.engines.deadline_s)
        return with_rewards(samples, function, self.tokenizer)

    def _sync(self, version: int) -> None:
        with self.awake(), self.weights.actor.awake():
            self.weights.send(version)


@contextmanager
def cluster_roles(config: PPOConfig, tokenizer: Any, total_steps: int, deadline_s: float) -> Iterator[Roles]:
    """Inside a ``ray_session``: start every worker and engine, yield the roles, and end them, whatever happened."""
    placement = plan(config)
    gpus = gpus_there() > 0
    executor = ThreadPoolExecutor(max_workers=16, thread_name_prefix="role")
    turns = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engines")
    rewarding = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rewards")
    handles: list[Any] = []
    busy = BusyClock()
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
        engines = Engines(
            start_engines(placement, config, gpus, actor.workers, deadline_s),
            deadline_s,
            actor.worked if placement.engines_share else partial(busy.add, "engines"),
        )
        handles += engines.engines
        start_groups(groups.values(), total_steps, deadline_s)
        sync = WeightSync(actor, engines.engines, engines.names, placement.engine_devices, deadline_s)
        sync.connect(sync_backend(config.vllm.vllm_sync_backend, gpus, placement), engine_dtype(config))
        if config.model.load_in_4bit:
            sync.send(0)  # the engines have loaded the weights as they were before they were quantised
        if placement.engines_sleep:
            engines.sleep()
        if placement.roles_sleep:
            for group in groups.values():
                group.call("offload", [()] * len(group.workers))
        lock = actor.lock if placement.engines_share else threading.RLock()
        rollout = ClusterRollout(engines, sync, lock, placement.engines_sleep, config, tokenizer, turns, rewarding)
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
        yield Roles(
            rollout,
            ClusterActor(actor, mini_batch),
            critic,
            reference,
            reward,
            busy,
        )
    finally:
        for handle in handles:
            ray.kill(handle)
        # What is left in line fails at once, as its workers are dead. A future that is cancelled in line would never
        # tell those that wait for it, and a thread that outlived Ray would never end.
        for line in (turns, rewarding, executor):
            line.shutdown(wait=True)


def start_groups(groups: Iterable[Group], total_steps: int, deadline_s: float) -> None:
    """Every group forms its process group and builds its model; all at once."""
    refs, names = [], []
    for group in groups:
        (place,) = await_all([group.workers[0].meeting_place.remote()], group.names[:1], "meeting_place", deadline_s)
        group.call("join", [place] * len(group.workers))
        refs += [worker.start.remote(total_steps) for worker in group.workers]
        names += group.names
    await_all(refs, names, "start", deadline_s)
