"""What may not be combined: one function a rule, each raising ValueError with one sentence that names the fix.

The rules stand in the files of this folder by what they speak of; ``RULES`` says which of them a command asks, and in
which order. A rule never changes a value. What follows from the flags stands in ``derived.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from openrlhf.config.commands import (
    BatchInferenceConfig,
    Command,
    DPOConfig,
    InteractiveChatConfig,
    KDConfig,
    KTOConfig,
    LoraCombinerConfig,
    PPOConfig,
    PRMConfig,
    RMConfig,
    ServeRMConfig,
    SFTConfig,
)
from openrlhf.config.not_built import check_built
from openrlhf.config.ranges import check_ranges
from openrlhf.config.rules import (
    algorithm,
    batches,
    data,
    inference,
    models,
    placement,
    preferences,
    rewards,
    rollouts,
    training,
)

__all__ = ["RULES", "broken", "check"]


def check(config: Command) -> None:
    """Raise ValueError with one sentence for the first rule that the configuration breaks."""
    check_built(config)
    check_ranges(config)
    for rule in RULES[type(config)]:
        rule(config)


def broken(config: Command) -> list[str]:
    """The sentence of every rule that the configuration breaks, where ``check`` raises the first."""
    ranges = _sentences(config, (check_built, check_ranges))
    return ranges or _sentences(config, RULES[type(config)])  # rules may divide by what is in its range


def _sentences(config: Command, rules: Iterable[Callable[[Any], None]]) -> list[str]:
    sentences = []
    for rule in rules:
        try:
            rule(config)
        except ValueError as error:
            sentences.append(str(error))
    return list(dict.fromkeys(sentences))


# Of every training command.
TRAINING = (
    data.template, training.scheduler, models.ring, models.tensor_parallel, batches.micro_batches,
    batches.token_budgets, models.packages, models.four_bits, models.adapters, models.balance, training.checkpoints,
)  # fmt: skip

REINFORCEMENT = (
    training.evaluation, data.prompt_shares, rewards.reward_address, rewards.reward_source, rewards.agent,
    batches.rollout_batch, rollouts.stop_strings, rollouts.filtering, algorithm.estimator, algorithm.surrogate,
    algorithm.correction, rollouts.asynchronous, rewards.overlong, algorithm.critic, algorithm.freezing,
    algorithm.average, algorithm.reference, algorithm.kl_horizon, placement.local, placement.engines,
    placement.no_engines, placement.workers, placement.idle_reference, placement.colocation,
    placement.colocated_engines, placement.sleep,
)  # fmt: skip

# Each command's rules, in the order in which they are asked; their argument is of that command's type.
RULES: dict[type[Command], tuple[Callable[[Any], None], ...]] = {
    SFTConfig: (
        *TRAINING, data.dataset_shares, data.pretrain_mode, data.multiturn, data.answers, training.evaluation,
    ),
    RMConfig: (*TRAINING, data.pair_shares, data.pair_template, preferences.margin, training.evaluation),
    DPOConfig: (
        *TRAINING, data.pair_shares, data.pair_template, preferences.smoothing, preferences.reference_offload,
        training.evaluation,
    ),
    KTOConfig: (
        *TRAINING, data.unpaired_shares, data.unpaired_answers, preferences.mismatched, preferences.reference_offload,
        training.evaluation,
    ),
    KDConfig: (*TRAINING, data.dataset_shares, data.pretrain_mode, data.answers, training.evaluation),
    PRMConfig: (*TRAINING, data.process_shares, data.reward_tokens, training.evaluation),
    PPOConfig: (*TRAINING, *REINFORCEMENT),
    ServeRMConfig: (models.packages,),
    LoraCombinerConfig: (),
    BatchInferenceConfig: (
        inference.task, inference.post_processor, inference.condition, inference.best_of_greedy, data.template,
        data.dataset_shares,
    ),
    InteractiveChatConfig: (data.template, inference.condition, models.packages),
}  # fmt: skip
