"""Rewards → advantages → losses of a stored step, computed again on this machine's CPU by the code of the loop.

It begins with what came from outside: the rewards of each source and the log-probs and values of the models. The first
number that comes out differently says where a run and this code, or its ``run_config.yaml``, part ways.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from openrlhf.algorithms.advantages import find_estimator
from openrlhf.algorithms.masked import sequence_mean_weights, token_mean_weights
from openrlhf.algorithms.policy_losses import find_policy_loss
from openrlhf.config.commands import PPOConfig
from openrlhf.config.derived import reward_weights
from openrlhf.objectives.reinforcement import policy_elements
from openrlhf.training.ppo import add_advantages
from openrlhf.training.rewards import shape_rewards, weighted_rewards
from openrlhf.training.sample_file import StoredSample, StoredStep
from openrlhf.training.samples import made_of
from openrlhf.training.update import weighted_sum
from openrlhf.types import Batch, Sample, collate, present

RELATIVE, ABSOLUTE = 1e-5, 1e-6  # the same float32 arithmetic on other shapes
FORWARD = 1e-3  # a forward of its own, in other micro-batches
OF_POLICY = ("policy_loss", "kl", "engine_log_prob_diff", "engine_kl", "correction_weight")


@dataclass(frozen=True)
class Difference:
    """The first place where a field does not come out as stored."""

    where: str
    stored: float
    again: float


@dataclass(frozen=True)
class Check:
    """One field: how many numbers were compared, and the first that differs."""

    field: str
    compared: int
    difference: Difference | None = None
    note: str = ""


def replay(step: StoredStep, config: PPOConfig, logged: Mapping[str, float]) -> Iterator[Check]:
    """The fields in the order in which they are computed. ``logged`` are the step's metrics, which are compared where
    the whole rollout batch is stored."""
    batch = as_batch(step)
    parts = {name: torch.tensor([s.parts[name] for s in step.samples]) for name in step.samples[0].parts}
    batch = batch.fill(rewards=weighted_rewards(parts, reward_weights(config)))
    yield _of_samples("outcome", step, present(batch.rewards, "rewards"))
    batch = shape_rewards(batch, config)
    yield _of_samples("reward", step, present(batch.rewards, "rewards"))
    if batch.old_log_probs is None and config.algorithm.init_kl_coef > 0 and not config.algorithm.use_kl_loss:
        raise ValueError(f"step {step.step} has no log-probs of the actor, which the KL in its rewards needs.")
    batch = add_advantages(batch, config, step.kl_coef)
    again = made_of(batch, config, step.kl_coef)
    for name in ("kl", "returns", "advantages", "loss", "value_loss"):
        if name in step.samples[0].per_token and name in again:
            whitened = name == "advantages" and find_estimator(config.algorithm.advantage_estimator).whitens
            yield _of_tokens(name, step, again[name], to_scale=whitened and not step.whole)
            if name == "advantages":  # from here on those of the whole batch
                batch = batch.fill(advantages=_padded(step, "advantages"))
                again = made_of(batch, config, step.kl_coef)
    if step.whole:
        yield from _of_log(batch, config, step.kl_coef, logged)


def as_batch(step: StoredStep) -> Batch:
    """The stored rows as the loop had them before the rewards were shaped."""
    batch = collate([as_sample(sample) for sample in step.samples], pad_token_id=0)
    names = {"old_log_probs": "log_probs", "ref_log_probs": "ref_log_probs", "values": "values"}
    there = {field: name for field, name in names.items() if name in step.samples[0].per_token}
    return batch.fill(**{field: _padded(step, name) for field, name in there.items()})


def as_sample(sample: StoredSample) -> Sample:
    return Sample(
        tokens=sample.tokens,
        action_mask=sample.action_mask,
        rollout_log_probs=sample.per_token.get("engine_log_probs"),
        group=sample.group,
        label=sample.label,
        source=sample.source,
        reward=sample.outcome,
        score=sample.score,
        truncated=sample.truncated,
    )


def _padded(step: StoredStep, name: str) -> Tensor:
    rows = [sample.per_token[name] for sample in step.samples]
    return pad_sequence(rows, batch_first=True)


def _of_samples(field: str, step: StoredStep, again: Tensor) -> Check:
    for sample, value in zip(step.samples, again.tolist(), strict=True):
        was = float(vars(sample)[field])
        if not _same(was, value):
            return Check(field, len(step.samples), Difference(f"sample {step.name_of(sample)}", was, value))
    return Check(field, len(step.samples))


def _of_tokens(field: str, step: StoredStep, again: Tensor, to_scale: bool) -> Check:
    """``to_scale``: up to the mean and the standard deviation of the whole batch, of which only a part is stored."""
    was, mask = _padded(step, field), pad_sequence([s.action_mask for s in step.samples], batch_first=True)
    if to_scale:
        again = torch.where(mask, _rescaled(again[mask], was[mask], again), 0.0)
    close = torch.isclose(was, again, rtol=RELATIVE, atol=1e-4 if to_scale else ABSOLUTE, equal_nan=True)
    note = "up to the mean and scale of the whole batch, which is not stored" if to_scale else ""
    wrong = (~close & mask).nonzero()
    if not len(wrong):
        return Check(field, int(mask.sum()), note=note)
    row, token = wrong[0].tolist()
    where = f"sample {step.name_of(step.samples[row])}, token {token}"
    return Check(field, int(mask.sum()), Difference(where, float(was[row, token]), float(again[row, token])), note)


def _rescaled(again: Tensor, was: Tensor, every: Tensor) -> Tensor:
    """``every`` on the scale on which ``again`` comes nearest to ``was`` (least squares)."""
    x, y = again.double(), was.double()
    spread = (x - x.mean()).square().sum()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / spread if spread > 0 else torch.tensor(1.0).double()
    return ((every.double() - x.mean()) * slope + y.mean()).to(every.dtype)


def _of_log(batch: Batch, config: PPOConfig, kl_coef: float, logged: Mapping[str, float]) -> Iterator[Check]:
    """The step's line of metrics.jsonl, as far as the samples decide it."""
    rewards, lengths = present(batch.rewards, "rewards"), batch.action_mask.sum(dim=1).float()
    made = {
        "reward": float(rewards.mean()),
        "reward_std": float(rewards.std(correction=0)),
        "response_length": float(lengths.mean()),
        "advantage_std": float(present(batch.advantages, "advantages")[batch.action_mask].std(correction=0)),
    }
    for name, value in made.items():
        if name in logged:
            yield _of_metric(name, logged[name], value, RELATIVE)
    steps = config.train.max_epochs * math.ceil(len(batch) / config.train.train_batch_size)
    old = batch.old_log_probs
    if steps == 1 and old is not None and not config.model.bf16:
        by_sequence = find_policy_loss(config.algorithm.policy_loss_type).by_sequence
        weights = (sequence_mean_weights if by_sequence else token_mean_weights)(batch.action_mask)
        metrics = policy_elements(old, torch.zeros_like(old), batch, config.algorithm, kl_coef).metrics
        for name in OF_POLICY:
            if name in logged and name in metrics:
                yield _of_metric(name, logged[name], float(weighted_sum(metrics[name].float(), weights)), FORWARD)


def _of_metric(name: str, was: float, again: float, relative: float) -> Check:
    same = _same(was, again, relative, 0.1 * relative)
    return Check(f"metric {name}", 1, None if same else Difference("metrics.jsonl", was, again))


def _same(was: float, again: float, relative: float = RELATIVE, absolute: float = ABSOLUTE) -> bool:
    return math.isclose(was, again, rel_tol=relative, abs_tol=absolute) or (math.isnan(was) and math.isnan(again))
