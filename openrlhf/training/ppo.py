"""The RL loop, for PPO and all its relatives.

    for each batch of prompts:
        samples    ← π_old                               rollout
        rewards    ← reward function, reward models      reward
        log π_old, log π_ref, V                          log_probs
        advantages ← estimator(rewards − β·KL, V)        advantages
        π, V       ← clipped updates                     update
        engines    ← π                                   sync

With ``--async_train`` the rollouts of later batches are under way meanwhile; how many of them is all that differs.
It knows roles, not machines: the same function runs in one process and on a cluster.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext

import torch

from openrlhf.algorithms.advantages import AdvantageInputs, estimate_advantages
from openrlhf.algorithms.kl import kl_estimate, make_kl_controller
from openrlhf.algorithms.rewards import kl_penalty
from openrlhf.config.commands import PPOConfig
from openrlhf.config.derived import reward_weights, rollouts_ahead
from openrlhf.data.sampler import Cursor
from openrlhf.training.ahead import Asked, ask_ahead, fresh
from openrlhf.training.checkpoints import Checkpoints, Progress, close_step, lost_after
from openrlhf.training.evaluation import Evaluation
from openrlhf.training.filtering import ask_until_full
from openrlhf.training.log import Phases, RunLog
from openrlhf.training.metric_names import OF_CRITIC
from openrlhf.training.rewards import add_rewards, shape_rewards
from openrlhf.training.roles import Roles, done, gather
from openrlhf.training.samples import SampleStore, choose
from openrlhf.training.skips import Skips
from openrlhf.training.step_metrics import rollout_metrics
from openrlhf.types import Batch, Metrics, Prompt, collate, present


def train(
    config: PPOConfig,
    roles: Roles,
    prompt_batches: Iterable[tuple[list[Prompt], Cursor]],
    log: RunLog,
    pad_token_id: int,
    deadline_s: float,
    checkpoints: Checkpoints | None = None,
    evaluation: Sequence[Prompt] = (),
    store: SampleStore | None = None,
) -> None:
    """Run RL until the prompts are used up: batches of them, each with where the data stands after it.

    Every wait ends after ``deadline_s`` at the latest. With ``checkpoints`` it goes on from where they start. With
    ``evaluation`` prompts it evaluates before the first step, and then every ``--eval_steps`` steps or episode.
    With a ``store`` it keeps samples of each step.
    """
    algorithm, ahead = config.algorithm, rollouts_ahead(config.rollout)
    kl = make_kl_controller(algorithm.init_kl_coef, algorithm.kl_target, algorithm.kl_horizon)
    evaluations = Evaluation(evaluation, roles, config, pad_token_id, deadline_s)
    progress = checkpoints.start if checkpoints else Progress()
    skips = Skips(config.train.max_skipped_steps, log, progress.skipped)
    if progress.kl_coef is not None:
        kl.coef = progress.kl_coef
        gather(roles.rollout.sync(progress.step), deadline_s=deadline_s)
    evaluations.before(progress, log)
    asked = rollouts(config, roles, prompt_batches, progress.step + 1, deadline_s)
    while True:
        # Where engines work beside the trainers, what they worked belongs to no phase.
        phases = Phases(None if ahead else roles.busy, progress.step, log.enter)
        saved_first = checkpoints.saved_first(progress) if checkpoints else nullcontext()
        with phases("rollout"), lost_after(progress.step), saved_first:
            if (rollout := next(asked, None)) is None:
                return
            (sampled,) = gather(rollout.samples, deadline_s=deadline_s)
        step = rollout.step
        samples = fresh(sampled, step, config.rollout.max_staleness)
        batch = collate(samples, pad_token_id)
        with phases("reward"):
            batch, parts = add_rewards(batch, roles, reward_weights(config), deadline_s)
            outcomes = present(batch.rewards, "rewards")
            batch = shape_rewards(batch, config)
        with phases("log_probs"):
            batch = add_log_probs_and_values(batch, roles, config, deadline_s)
            chosen = choose(store, rollout.prompts, samples, batch, roles, deadline_s)
        with phases("advantages"):
            batch = add_advantages(batch, config, kl.coef)
        if store and chosen:
            store.write(step, chosen.rows, chosen.of(batch), samples, rollout.prompts, parts, outcomes, kl.coef)
        with phases("update"):
            critic, actor = gather(
                roles.critic.update(batch),
                roles.actor.update(batch, kl.coef) if step > algorithm.freezing_actor_steps else done({}),
                deadline_s=deadline_s,
            )
        with phases("sync"):
            gather(roles.rollout.sync(step), deadline_s=deadline_s)
        evaluated, best = evaluations.after(step, rollout.cursor, progress, phases)
        made = rollout_metrics(config, rollout, sampled, samples, batch, parts)
        spent = phases.metrics(tokens=int(batch.attention_mask.sum()))
        log.step(step, {**evaluated, **made, **actor, **(critic or {}), "kl_coef": kl.coef, **spent})
        if "kl" in actor:  # not where it is frozen, or every optimizer step was skipped
            kl.update(actor["kl"], len(batch))
        skips.note_update(step, "actor", actor, batch, config.train)
        skips.note_update(step, "critic", of_critic(critic), batch, config.train)
        progress = Progress(step, rollout.cursor, kl.coef, best, dict(skips.in_a_row))
        close_step(progress, checkpoints, skips.why)


def rollouts(
    config: PPOConfig,
    roles: Roles,
    prompt_batches: Iterable[tuple[list[Prompt], Cursor]],
    first: int,
    deadline_s: float,
) -> Iterator[Asked]:
    """The rollout of each step from ``first`` on."""
    seed, engines, ahead = config.train.seed, roles.rollout, rollouts_ahead(config.rollout)
    if config.rollout.dynamic_filtering:
        return ask_until_full(engines, prompt_batches, config.rollout, seed, first, deadline_s, ahead > 0)
    return ask_ahead(engines, prompt_batches, seed, first, ahead)


def add_log_probs_and_values(batch: Batch, roles: Roles, config: PPOConfig, deadline_s: float) -> Batch:
    """What the update compares with: log π_old (when it is needed), log π_ref, V, all before the first step."""
    old, reference, values = gather(
        roles.actor.log_probs(batch) if needs_old_log_probs(config) else done(None),
        roles.reference.log_probs(batch),
        roles.critic.values(batch),
        deadline_s=deadline_s,
    )
    return batch.fill(old_log_probs=old, ref_log_probs=reference, values=values)


def needs_old_log_probs(config: PPOConfig) -> bool:
    """False when the single step can take its own log-probs, detached, for π_old: one forward saved.

    π_old is the trainer's policy just before the update, also where the samples are of older weights: how far those
    are from π_old is what ``--enable_vllm_is_correction`` weighs.
    """
    rows = config.rollout.rollout_batch_size * config.rollout.n_samples_per_prompt
    steps = config.train.max_epochs * rows // config.train.train_batch_size
    kl_in_reward = config.algorithm.init_kl_coef > 0 and not config.algorithm.use_kl_loss
    return steps > 1 or kl_in_reward


def add_advantages(batch: Batch, config: PPOConfig, kl_coef: float) -> Batch:
    """Advantages and returns, (B, T), with the KL penalty in the reward unless ``--use_kl_loss``."""
    algorithm = config.algorithm
    kl_rewards = torch.zeros_like(batch.tokens, dtype=torch.float32)
    if batch.ref_log_probs is not None and not algorithm.use_kl_loss:
        kl = kl_estimate(present(batch.old_log_probs, "old_log_probs"), batch.ref_log_probs, algorithm.kl_estimator)
        kl_rewards = kl_penalty(kl, kl_coef, batch.action_mask)
    low, high = config.reward.reward_clip_range
    inputs = AdvantageInputs(
        rewards=present(batch.rewards, "rewards"),
        kl_rewards=kl_rewards,
        action_mask=batch.action_mask,
        groups=present(batch.groups, "groups"),
        values=batch.values,
        gamma=algorithm.gamma,
        lambd=algorithm.lambd,
        reward_clip=(low, high),
        turn_rewards=batch.turn_rewards,
    )
    advantages, returns = estimate_advantages(
        algorithm.advantage_estimator, inputs, std_norm=not algorithm.no_advantage_std_norm
    )
    return batch.fill(advantages=advantages, returns=returns)


def of_critic(metrics: Metrics | None) -> Metrics:
    """Under the names that the actor's have."""
    return {name.removeprefix(OF_CRITIC): value for name, value in (metrics or {}).items()}
