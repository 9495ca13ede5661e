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

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from openrlhf.algorithms.advantages import AdvantageInputs, estimate_advantages
from openrlhf.algorithms.kl import kl_estimate, make_kl_controller
from openrlhf.algorithms.rewards import kl_penalty, overlong_penalty, stop_properly, stop_turns_properly
from openrlhf.config.commands import PPOConfig
from openrlhf.config.derived import reward_weights, rollouts_ahead
from openrlhf.data.sampler import Cursor
from openrlhf.training.ahead import Asked, ask_ahead, fresh, mixed, staleness
from openrlhf.training.best import keep_best
from openrlhf.training.checkpoint_part import own_random_numbers
from openrlhf.training.checkpoints import Checkpoints, Progress, close_step
from openrlhf.training.filtering import ask_until_full, groups
from openrlhf.training.log import Phases, RunLog
from openrlhf.training.metric_names import OF_CRITIC, REWARD_PARTS
from openrlhf.training.pass_rates import pass_rates
from openrlhf.training.roles import Roles, done, gather
from openrlhf.training.samples import SampleStore, missing_log_probs
from openrlhf.training.skips import Skips
from openrlhf.types import Batch, Metrics, Prompt, Sample, collate, merge_metrics, present


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
    algorithm = config.algorithm
    kl = make_kl_controller(algorithm.init_kl_coef, algorithm.kl_target, algorithm.kl_horizon)
    skips = Skips(config.train.max_skipped_steps, log)
    start = checkpoints.start if checkpoints else Progress()
    if start.kl_coef is not None:
        kl.coef = start.kl_coef
        gather(roles.rollout.sync(start.step), deadline_s=deadline_s)
    ahead = rollouts_ahead(config.rollout)
    if evaluation and start.step == 0:
        phases = Phases(roles.busy)
        with phases("evaluate"):
            evaluated = evaluate(evaluation, roles, config, pad_token_id, deadline_s)
        log.step(0, {**evaluated, **phases.seconds})
    episode, best = start.cursor.epoch, start.best
    asked = rollouts(config, roles, prompt_batches, start.step + 1, deadline_s)
    step, cursor = start.step, start.cursor
    while True:
        # Where engines work beside the trainers, what they worked belongs to no phase.
        phases = Phases(None if ahead else roles.busy, step)
        last = Progress(step, cursor, kl.coef, best)
        with phases("rollout"), checkpoints.saved_first(last) if checkpoints else nullcontext():
            if (rollout := next(asked, None)) is None:
                break
            (sampled,) = gather(rollout.samples, deadline_s=deadline_s)
        step, cursor = rollout.step, rollout.cursor
        samples = fresh(sampled, step, config.rollout.max_staleness)
        batch = collate(samples, pad_token_id)
        with phases("reward"):
            batch, parts = add_rewards(batch, roles, reward_weights(config), deadline_s)
            outcomes = present(batch.rewards, "rewards")
            batch = shape_rewards(batch, config)
        stored = store.choose(rollout.prompts, samples) if store else []
        with phases("log_probs"):
            batch = add_log_probs_and_values(batch, roles, config, deadline_s)
            missing = missing_log_probs(batch, stored, roles, deadline_s)
        with phases("advantages"):
            batch = add_advantages(batch, config, kl.coef)
        if store and stored:
            rows = batch.select(stored)
            rows = rows if missing is None else rows.fill(old_log_probs=missing)
            store.write(step, stored, rows, samples, rollout.prompts, parts, outcomes, kl.coef)
        with phases("update"):
            critic, actor = gather(
                roles.critic.update(batch),
                roles.actor.update(batch, kl.coef) if step > config.algorithm.freezing_actor_steps else done({}),
                deadline_s=deadline_s,
            )
        with phases("sync"):
            gather(roles.rollout.sync(step), deadline_s=deadline_s)
        evaluated = {}
        if evaluation and evaluation_due(config.log.eval_steps, step, rollout.cursor.epoch > episode):
            with phases("evaluate"):
                evaluated = evaluate(evaluation, roles, config, pad_token_id, deadline_s)
                best = keep_best(evaluated, best, roles.actor, config, deadline_s)
        episode = rollout.cursor.epoch
        log.step(
            step,
            {
                **evaluated,
                **sample_metrics(samples, batch),
                **staleness(samples, step),
                **({"mixed": mixed(samples)} if config.rollout.partial_rollout else {}),
                **part_means(parts),
                **left_out(config, len(rollout.prompts), sampled, len(samples)),
                **actor,
                **(critic or {}),
                "kl_coef": kl.coef,
                **phases.metrics(tokens=int(batch.attention_mask.sum())),
            },
        )
        if "kl" in actor:  # not where it is frozen, or every optimizer step was skipped
            kl.update(actor["kl"], len(batch))
        skips.note_update(step, "actor", actor, batch, config.train)
        skips.note_update(step, "critic", of_critic(critic), batch, config.train)
        close_step(Progress(step, rollout.cursor, kl.coef, best), checkpoints, skips.why)


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


def evaluation_due(every: int, step: int, episode_ended: bool) -> bool:
    return episode_ended if every < 0 else step % every == 0


def evaluate(
    prompts: Sequence[Prompt], roles: Roles, config: PPOConfig, pad_token_id: int, deadline_s: float
) -> Metrics:
    """pass@1 and pass@n of each source of ``prompts``, with the same seed every time.

    The random numbers of training, the seeds of its rollouts among them, are what they would be without it.
    """
    with own_random_numbers():
        (samples,) = gather(roles.rollout.evaluate(list(prompts), config.train.seed), deadline_s=deadline_s)
        batch, _ = add_rewards(collate(samples, pad_token_id), roles, reward_weights(config), deadline_s)
    sources, groups = [sample.source for sample in samples], [sample.group for sample in samples]
    rewards = present(batch.rewards, "rewards").tolist()
    return pass_rates(sources, groups, rewards, config.evaluation.eval_n_samples_per_prompt)


def add_rewards(batch: Batch, roles: Roles, weights: list[float], deadline_s: float) -> tuple[Batch, dict[str, Tensor]]:
    """Outcome rewards: the weighted sum of those of the reward models and of a function, which the batch holds.

    Returns those of each, (B,), too.
    """
    by_models = gather(*roles.reward.rewards(batch), deadline_s=deadline_s)
    named = {f"model_{number}": rewards for number, rewards in enumerate(by_models, start=1)}
    if batch.rewards is not None:
        named["function"] = batch.rewards
    if batch.turn_rewards is not None:  # an agent's, beside which there is no other reward
        batch = batch.fill(turn_rewards=weights[-1] * batch.turn_rewards)
    return batch.fill(rewards=weighted_rewards(named, weights)), named


def weighted_rewards(parts: Mapping[str, Tensor], weights: list[float]) -> Tensor:
    """(B,) rewards of each source → (B,) outcome rewards."""
    return torch.stack([w * rewards for w, rewards in zip(weights, parts.values(), strict=True)]).sum(dim=0)


def part_means(parts: Mapping[str, Tensor]) -> Metrics:
    """The mean reward of each source, where there are several."""
    means = {REWARD_PARTS + name: float(rewards.mean()) for name, rewards in parts.items()}
    return means if len(means) > 1 else {}


def shape_rewards(batch: Batch, config: PPOConfig) -> Batch:
    """What length takes off a reward: ``--overlong_buffer_len`` and ``--stop_properly_penalty_coef``."""
    reward, rewards, of_turns = config.reward, present(batch.rewards, "rewards"), batch.turn_rewards
    if reward.overlong_buffer_len is not None:
        lengths, longest = batch.action_mask.sum(dim=1), config.rollout.generate_max_len
        rewards = rewards + overlong_penalty(
            lengths, longest, reward.overlong_buffer_len, reward.overlong_penalty_factor
        )
    if reward.stop_properly_penalty_coef is not None:
        truncated, coef = present(batch.truncated, "truncated"), reward.stop_properly_penalty_coef
        rewards = stop_properly(rewards, truncated, coef)
        if of_turns is not None:
            of_turns = stop_turns_properly(of_turns, truncated, coef, batch.action_mask)
    return batch.fill(rewards=rewards, turn_rewards=of_turns)


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


def left_out(config: PPOConfig, prompts: int, sampled: list[Sample], kept: int) -> Metrics:
    """Which share was left out, where that may happen: of the prompts, and of the samples of the others without a
    reward and then for their age."""
    metrics: Metrics = {}
    if config.rollout.dynamic_filtering:
        metrics["groups_kept"] = groups(sampled) / prompts
        prompts = groups(sampled)
    if config.reward.on_reward_failure == "drop":
        metrics["reward/invalid"] = 1 - len(sampled) / (prompts * config.rollout.n_samples_per_prompt)
    if config.rollout.max_staleness is not None:
        metrics["stale"] = 1 - kept / len(sampled)
    return metrics


def dead_groups(rewards: Tensor, groups: Tensor) -> Metrics:
    """Which share of the groups of several samples has one same reward, (B,) and (B,): they teach nothing."""
    numbers, place, counts = groups.unique(return_inverse=True, return_counts=True)
    empty = torch.zeros(len(numbers), dtype=rewards.dtype)
    least, most = (empty.scatter_reduce(0, place, rewards, by, include_self=False) for by in ("amin", "amax"))
    several = counts > 1
    return {"dead_groups": float((least == most)[several].float().mean())} if several.any() else {}


def sample_metrics(samples: list[Sample], batch: Batch) -> Metrics:
    """What the rollout batch looks like, before the update."""
    lengths = batch.action_mask.sum(dim=1).float()
    rewards, advantages = present(batch.rewards, "rewards"), present(batch.advantages, "advantages")
    metrics = {
        "reward": float(rewards.mean()),
        "reward_std": float(rewards.std(correction=0)),
        "response_length": float(lengths.mean()),
        "response_length_max": float(lengths.max()),
        "truncated": sum(s.truncated for s in samples) / len(samples),
        "advantage_std": float(advantages[batch.action_mask].std(correction=0)),
    }
    if batch.scores is not None:
        metrics["score"] = float(batch.scores.mean())
    metrics |= dead_groups(rewards, present(batch.groups, "groups"))
    parts = merge_metrics([s.metrics for s in samples])
    return {**metrics, **{REWARD_PARTS + name: value for name, value in parts.items()}}
