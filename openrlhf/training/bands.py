"""Where the metrics of a healthy run lie, and beyond what one is a red flag: for the docs, the page and the diagnosis.

They are rules of thumb for language models of the usual sizes. A run of another kind may live outside them, which is
why nothing stops because of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Range = tuple[float | None, float | None]  # None: no bound on that side
Verdict = Literal["healthy", "watch", "red"]


@dataclass(frozen=True)
class Band:
    """Healthy inside the first range, a red flag outside the second, between them worth a look."""

    healthy: Range
    red: Range
    meaning: str  # of the red flag

    def verdict(self, value: float) -> Verdict:
        if not math.isfinite(value) or not _inside(value, self.red):
            return "red"
        return "healthy" if _inside(value, self.healthy) else "watch"


def _inside(value: float, bounds: Range) -> bool:
    low, high = bounds
    return (low is None or value >= low) and (high is None or value <= high)


BANDS: dict[str, Band] = {
    "grad_norm": Band((None, 10.0), (None, 100.0), "updates are as large as --max_norm lets them: a smaller rate"),
    "skipped_steps": Band((None, 0.0), (None, 0.0), "a loss or a gradient was not finite"),
    "critic_skipped_steps": Band((None, 0.0), (None, 0.0), "a loss or a gradient of the critic was not finite"),
    "accuracy": Band((0.5, None), (0.4, None), "the wrong answers are preferred: are the columns swapped?"),
    "reward_std": Band((1e-3, None), (1e-6, None), "all rewards are the same: there is nothing to learn from"),
    "groups_kept": Band((0.3, None), (0.1, None), "most prompts teach nothing: too easy or too hard"),
    "dead_groups": Band((None, 0.5), (None, 0.8), "most prompts teach nothing: too easy or too hard"),
    "reward/invalid": Band((None, 0.01), (None, 0.1), "the reward function or the agent fails"),
    "truncated": Band((None, 0.1), (None, 0.5), "answers are cut: raise --generate_max_len, or they ramble"),
    "stale": Band((None, 0.1), (None, 0.5), "samples are thrown away for their age"),
    "clip_ratio": Band((None, 0.2), (None, 0.5), "the policy leaves the clip range: a smaller rate or fewer epochs"),
    "ppo_kl": Band((-0.05, 0.05), (-0.2, 0.2), "the policy moves too far on one rollout batch"),
    "entropy": Band((0.1, 6.0), (0.02, 9.0), "below: one answer is left; above: the policy writes noise"),
    "kl": Band((-0.1, 0.2), (-1.0, 1.0), "the policy has left the reference"),
    "engine_log_prob_diff": Band((None, 0.03), (None, 0.1), "engine and trainer hold different policies"),
    "engine_kl": Band((-0.02, 0.02), (-0.1, 0.1), "engine and trainer hold different policies"),
    "correction_weight": Band((0.9, 1.1), (0.5, 2.0), "samples are not of the policy that learns"),
    "advantage_std": Band((1e-2, None), (1e-6, None), "all advantages are the same: there is nothing to learn from"),
}


def band_shown(bounds: Range) -> str:
    """``0.1 to 6``, ``at most 0.2``, ``at least 0.5``."""
    low, high = bounds
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    return f"at most {high:g}" if low is None else f"at least {low:g}"
