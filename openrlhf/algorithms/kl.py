"""How far the policy is from the reference, and how much that costs.

The estimators are those of J. Schulman, "Approximating KL Divergence" (2020, joschu.net/blog/kl-approx.html).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from openrlhf.algorithms.registry import lookup

LIMIT = 10.0  # one strange token must not outweigh the reward of its sequence


def k1(log_ratio: Tensor) -> Tensor:
    """log π/π_ref (any shape): unbiased, of either sign. Used in the reward: arXiv:1909.08593, eq. 2."""
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """½ (log π/π_ref)² (any shape): biased, ≥ 0; its gradient is that of the KL. Schulman 2020; arXiv:2501.03262."""
    return 0.5 * log_ratio.square()


def k3(log_ratio: Tensor) -> Tensor:
    """π_ref/π − 1 + log π/π_ref (any shape): unbiased, ≥ 0. arXiv:2402.03300, eq. 4."""
    # Beyond ±20 the result is past LIMIT anyway, and an overflowing exp would turn the zero gradient into NaN.
    bounded = log_ratio.clamp(-20.0, 20.0)
    return (-bounded).exp() - 1.0 + bounded


KL_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


def kl_estimate(log_probs: Tensor, ref_log_probs: Tensor, estimator: str) -> Tensor:
    """KL(π‖π_ref) per token, clamped to [−10, 10]: (B, T), (B, T) → (B, T). ``estimator``: k1, k2 or k3.

    The samples come from π. Raises ValueError for an unknown estimator.
    Paper: Schulman 2020 (see above); arXiv:2402.03300, eq. 4.
    """
    estimate = lookup(KL_ESTIMATORS, estimator, "--kl_estimator")
    return estimate(log_probs - ref_log_probs).clamp(-LIMIT, LIMIT)


@dataclass
class FixedKL:
    """A coefficient that stays. Paper: arXiv:1909.08593, eq. 2."""

    coef: float

    def update(self, kl: float, samples: int) -> None:
        """Does nothing."""


@dataclass
class AdaptiveKL:
    """A coefficient steered so that the measured KL reaches ``target``. Paper: arXiv:1909.08593, §2.2.

    ``horizon``: samples over which the error acts in full. Raises ValueError unless target and horizon are positive.
    """

    coef: float
    target: float
    horizon: float

    def __post_init__(self) -> None:
        if self.target <= 0:
            raise ValueError(f"--kl_target must be positive, got {self.target}; leave it out for a fixed coefficient.")
        if self.horizon <= 0:
            raise ValueError(f"--kl_horizon must be positive, got {self.horizon}.")

    def update(self, kl: float, samples: int) -> None:
        """coef *= 1 + clip(kl/target − 1, ±0.2) · samples/horizon, once per rollout batch of ``samples`` samples.

        ``kl``: the mean KL in nats, measured as ``target`` is meant. One that is not finite leaves the coefficient.
        Raises ValueError when the step could make the coefficient 0 or negative.
        """
        if 0.2 * samples >= self.horizon:
            raise ValueError(
                f"--kl_horizon {self.horizon:g} is too short for rollout batches of {samples} samples: "
                f"make it larger than {samples // 5}, or the KL coefficient may turn negative."
            )
        if not math.isfinite(kl):
            return
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        self.coef *= 1.0 + error * samples / self.horizon


KLController = FixedKL | AdaptiveKL


def make_kl_controller(init: float, target: float | None, horizon: float) -> KLController:
    """Adaptive when there is a target, else fixed. Raises ValueError as ``AdaptiveKL``. Paper: arXiv:1909.08593."""
    return FixedKL(init) if target is None else AdaptiveKL(init, target, horizon)
