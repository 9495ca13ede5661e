"""The policy and the value objective of RL on one micro-batch. Both losses are (B, T)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openrlhf.algorithms.kl import kl_estimate
from openrlhf.algorithms.policy_losses import POLICY_LOSSES
from openrlhf.algorithms.value_losses import clipped_value_loss
from openrlhf.config.groups import AlgorithmConfig
from openrlhf.objectives.loss import Loss
from openrlhf.types import Batch


def policy_loss(
    model: nn.Module, batch: Batch, *, algorithm: AlgorithmConfig, temperature: float, packed: bool, kl_coef: float
) -> Loss:
    """Clipped policy loss, plus ``kl_coef`` · KL with ``--use_kl_loss``, minus the entropy bonus.

    Without ``old_log_probs`` the policy that sampled is the policy at hand (one on-policy step), so they are its own,
    detached.
    """
    mask = batch.action_mask
    scores = model(batch, temperature=temperature, entropy=True, packed=packed)
    log_probs = scores.log_probs
    now = log_probs.detach()
    old = now if batch.old_log_probs is None else _masked(batch.old_log_probs, mask)
    low, high = algorithm.eps_clip_low_high or (algorithm.eps_clip, algorithm.eps_clip)
    policy = POLICY_LOSSES["ppo"](log_probs, old, _masked(batch.advantages, mask), low, high, algorithm.dual_clip)
    elements = policy.loss
    metrics = {
        "policy_loss": policy.loss.detach(),
        "clip_ratio": policy.clipped,
        "ppo_kl": old - now,
        "entropy": scores.entropy.detach(),
    }
    if batch.ref_log_probs is not None:
        kl = kl_estimate(log_probs, _masked(batch.ref_log_probs, mask), algorithm.kl_estimator)
        metrics["kl"] = kl.detach()
        if algorithm.use_kl_loss:
            elements = elements + kl_coef * kl
    if algorithm.entropy_loss_coef != 0:
        elements = elements - algorithm.entropy_loss_coef * scores.entropy
    if batch.rollout_log_probs is not None:
        metrics["engine_log_prob_diff"] = (old - _masked(batch.rollout_log_probs, mask)).abs()
    return Loss(elements, metrics)


def value_loss(model: nn.Module, batch: Batch, *, value_clip: float, packed: bool) -> Loss:
    """Clipped squared error of the critic's values against the returns."""
    mask = batch.action_mask
    values = model(batch, "values", packed=packed)
    elements = clipped_value_loss(values, _masked(batch.values, mask), _masked(batch.returns, mask), value_clip)
    return Loss(elements, {"value": values.detach(), "return": _masked(batch.returns, mask)})


def _masked(x: Tensor | None, mask: Tensor) -> Tensor:
    """Zeros outside the mask, whatever stood there, so that no NaN reaches the gradient."""
    if x is None:
        raise ValueError("this objective needs a field that the batch does not carry")
    return torch.where(mask, x, 0.0)
