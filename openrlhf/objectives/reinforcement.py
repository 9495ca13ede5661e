"""The policy and the value objective of RL on one micro-batch. Both losses are (B, T).

Stored fields are zeroed outside the action mask before any arithmetic: masking the loss alone would let a NaN in a
masked slot into the gradient, since 0 · NaN is NaN.
"""

from __future__ import annotations

from torch import Tensor, nn

from openrlhf.algorithms.kl import kl_estimate
from openrlhf.algorithms.masked import zero_outside
from openrlhf.algorithms.policy_losses import find_policy_loss
from openrlhf.algorithms.rollout_correction import find_correction
from openrlhf.algorithms.value_losses import clipped_value_loss
from openrlhf.config.groups import AlgorithmConfig
from openrlhf.objectives.loss import Loss
from openrlhf.types import Batch, present


def policy_loss(
    model: nn.Module, batch: Batch, *, algorithm: AlgorithmConfig, temperature: float, packed: bool, kl_coef: float
) -> Loss:
    """Policy loss, corrected for what the engine sampled from with ``--enable_vllm_is_correction``, plus ``kl_coef`` ·
    KL with ``--use_kl_loss``, minus the entropy bonus."""
    scores = model(batch, temperature=temperature, entropy=True, packed=packed)
    return policy_elements(scores.log_probs, scores.entropy, batch, algorithm, kl_coef)


def policy_elements(
    log_probs: Tensor, entropy: Tensor, batch: Batch, algorithm: AlgorithmConfig, kl_coef: float
) -> Loss:
    """The same, from what the model says of each token, (B, T).

    Without ``old_log_probs`` the policy that sampled is the policy at hand (one on-policy step), so they are its own,
    detached.
    """
    mask = batch.action_mask
    now = log_probs.detach()
    old = now if batch.old_log_probs is None else zero_outside(batch.old_log_probs, mask)
    low, high = algorithm.eps_clip_low_high or (algorithm.eps_clip, algorithm.eps_clip)
    advantages = zero_outside(present(batch.advantages, "advantages"), mask)
    surrogate = find_policy_loss(algorithm.policy_loss_type).function
    policy = surrogate(log_probs, old, advantages, mask, low, high, algorithm.dual_clip)
    elements = policy.loss
    metrics = {
        "policy_loss": policy.loss.detach(),
        "clip_ratio": policy.clipped,
        "ppo_kl": old - now,
        "entropy": entropy.detach(),
    }
    if batch.rollout_log_probs is not None:
        sampled = zero_outside(batch.rollout_log_probs, mask)
        metrics["engine_log_prob_diff"] = (old - sampled).abs()
        metrics["engine_kl"] = sampled - old
    if algorithm.enable_vllm_is_correction:
        bounds = algorithm.vllm_is_truncated_threshold
        sampled = zero_outside(present(batch.rollout_log_probs, "rollout_log_probs"), mask)
        weights = find_correction(algorithm.vllm_is_correction_type)(old, sampled, mask, *bounds)
        elements = elements * weights
        metrics["correction_weight"] = weights
    if batch.ref_log_probs is not None:
        kl = kl_estimate(log_probs, zero_outside(batch.ref_log_probs, mask), algorithm.kl_estimator)
        metrics["kl"] = kl.detach()
        if algorithm.use_kl_loss:
            elements = elements + kl_coef * kl
    if algorithm.entropy_loss_coef != 0:
        elements = elements - algorithm.entropy_loss_coef * entropy
    return Loss(elements, metrics)


def value_loss(model: nn.Module, batch: Batch, *, value_clip: float, packed: bool) -> Loss:
    """Clipped squared error of the critic's values against the returns."""
    return value_elements(model(batch, "values", packed=packed), batch, value_clip)


def value_elements(values: Tensor, batch: Batch, value_clip: float) -> Loss:
    """The same, from the values, (B, T)."""
    mask = batch.action_mask
    old_values = zero_outside(present(batch.values, "values"), mask)
    returns = zero_outside(present(batch.returns, "returns"), mask)
    elements = clipped_value_loss(values, old_values, returns, value_clip)
    return Loss(elements, {"value": values.detach(), "return": returns})
