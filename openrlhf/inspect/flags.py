"""Why a stored sample is worth a look."""

from __future__ import annotations

import math

import torch

from openrlhf.inspect.evidence import groups, length, mean_of
from openrlhf.training.bands import BANDS
from openrlhf.training.sample_file import StoredSample, StoredStep


def flags(step: StoredStep) -> dict[int, list[str]]:
    """Row → reasons, of the samples that have any."""
    found = {sample.row: flags_of(sample) for sample in step.samples}
    for members in groups([step]):
        if len({sample.outcome for _, sample in members}) == 1:
            for _, sample in members:
                found[sample.row].append("all rewards of the prompt are the same")
    return {row: reasons for row, reasons in found.items() if reasons}


def flags_of(sample: StoredSample) -> list[str]:
    reasons = []
    if sample.truncated:
        reasons.append("truncated")
    if not math.isfinite(sample.outcome):
        reasons.append("its reward is no number")
    if length(sample) == 0:
        reasons.append("empty")
    if (gap := engine_gap(sample)) is not None:
        mean = float(gap[sample.action_mask].mean()) if length(sample) else 0.0
        if BANDS["engine_log_prob_diff"].verdict(mean) == "red":
            reasons.append(f"engine and trainer differ by {mean:.2g} a token")
    if (kl := mean_of(sample, "kl")) and math.isfinite(kl) and BANDS["kl"].verdict(kl) == "red":
        reasons.append(f"KL of {kl:.2g} a token")
    return reasons


def engine_gap(sample: StoredSample) -> torch.Tensor | None:
    """|log-prob by the trainer − by the engine| of each token, [T]."""
    ours, theirs = sample.per_token.get("log_probs"), sample.per_token.get("engine_log_probs")
    return None if ours is None or theirs is None else torch.where(sample.action_mask, (ours - theirs).abs(), 0.0)
