"""The rollout role of an RL run on Ray: engines, reward functions and new weights, each in a line."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from openrlhf.cluster.processes import Processes
from openrlhf.cluster.sampling import Sampling
from openrlhf.config.commands import PPOConfig
from openrlhf.config.derived import evaluation_rollout
from openrlhf.config.groups import RolloutConfig
from openrlhf.rollout.agents import agent_of
from openrlhf.rollout.collect import collect, sampling_params, with_rewards
from openrlhf.rollout.engine import EnginesLost
from openrlhf.rollout.rewards import RewardFunction
from openrlhf.rollout.sources import reward_function
from openrlhf.training.roles import gather
from openrlhf.types import Prompt, Sample


class ClusterRollout:
    """Collects, and brings new weights to what samples.

    Rollouts come in the order in which they were asked for. Reward functions have a line of their own: with rollouts
    ahead the engines go on meanwhile.
    """

    def __init__(
        self, sampling: Sampling, config: PPOConfig, tokenizer: Any, processes: Processes, deadline_s: float
    ) -> None:
        self.engines = sampling.engines
        self.held = sampling.held
        self.send = sampling.sync
        self.turns = processes.turns
        self.rewarding = processes.rewarding
        self.sync_line = processes.turns if sampling.sync_waits else processes.syncing
        self.deadline_s = deadline_s
        self.config = config
        self.tokenizer = tokenizer
        self.lost: EnginesLost | None = None
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
