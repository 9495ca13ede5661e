"""When the policy of an RL run is evaluated, on which prompts, and which one is the best so far."""

from __future__ import annotations

from collections.abc import Sequence

from openrlhf.config.commands import PPOConfig
from openrlhf.config.derived import reward_weights
from openrlhf.data.sampler import Cursor
from openrlhf.training.best import keep_best
from openrlhf.training.checkpoint_part import own_random_numbers
from openrlhf.training.checkpoints import Progress, lost_after
from openrlhf.training.log import Phases, RunLog
from openrlhf.training.pass_rates import pass_rates
from openrlhf.training.rewards import add_rewards
from openrlhf.training.roles import Roles, gather
from openrlhf.types import Metrics, Prompt, collate, present


class Evaluation:
    """Of ``prompts``; none of it where there are none."""

    def __init__(
        self, prompts: Sequence[Prompt], roles: Roles, config: PPOConfig, pad_token_id: int, deadline_s: float
    ) -> None:
        self.prompts = list(prompts)
        self.roles = roles
        self.config = config
        self.pad_token_id = pad_token_id
        self.deadline_s = deadline_s

    def before(self, start: Progress, log: RunLog) -> None:
        """The policy that a run begins with, as step 0."""
        if not self.prompts or start.step > 0:
            return
        phases = Phases(self.roles.busy, enter=log.enter)
        with phases("evaluate"):
            rates = self.rates()
        log.step(0, {**rates, **phases.seconds})

    def after(self, step: int, cursor: Cursor, last: Progress, phases: Phases) -> tuple[Metrics, float | None]:
        """Evaluate every ``--eval_steps`` steps or episode, ``last`` being the progress of the step before. Returns the
        highest value so far of ``--best_metric_key`` too; an actor that raises it is saved."""
        every = self.config.log.eval_steps
        due = cursor.epoch > last.cursor.epoch if every < 0 else step % every == 0
        if not self.prompts or not due:
            return {}, last.best
        with phases("evaluate"), lost_after(step):
            rates = self.rates()
            return rates, keep_best(rates, last.best, self.roles.actor, self.config, self.deadline_s)

    def rates(self) -> Metrics:
        """pass@1 and pass@n of each source, with the same seed every time.

        The random numbers of training, the seeds of its rollouts among them, are what they would be without it.
        """
        config, roles, deadline_s = self.config, self.roles, self.deadline_s
        with own_random_numbers():
            (samples,) = gather(roles.rollout.evaluate(self.prompts, config.train.seed), deadline_s=deadline_s)
            batch = collate(samples, self.pad_token_id)
            batch, _ = add_rewards(batch, roles, reward_weights(config), deadline_s)
        sources, groups = [sample.source for sample in samples], [sample.group for sample in samples]
        rewards = present(batch.rewards, "rewards").tolist()
        return pass_rates(sources, groups, rewards, config.evaluation.eval_n_samples_per_prompt)
