"""What the policy has become: too sure, too far from its start, or another than the engine's."""

from __future__ import annotations

import math

from openrlhf.inspect.evidence import (
    Evidence,
    answer,
    ends,
    groups,
    mean_of,
)
from openrlhf.inspect.rules.finding import SHOWN, Answer, Finding, Unknown, beyond, outgrown, shown, upper
from openrlhf.training.bands import BANDS
from openrlhf.training.sample_file import StoredSample


def entropy_collapse(run: Evidence) -> Answer:
    """The policy has stopped trying: entropy near 0, or a fifth of what it was."""
    entropy = run.curve("entropy")
    if not entropy:
        return Unknown("no entropy was logged")
    first, last = ends(entropy)
    floor, edge = BANDS["entropy"].red[0] or 0.0, BANDS["entropy"].healthy[0] or 0.0
    if last >= floor and not (last < edge and last < first / 5):
        return None
    same = [members for members in groups(run.late) if len({answer(sample) for _, sample in members}) == 1]
    share = len(same) / max(1, len(list(groups(run.late))))
    return Finding(
        what="entropy collapse: the policy gives one answer to a prompt",
        weight=0.6 + 0.4 * beyond(first / max(last, 1e-6), 5, 100),
        numbers={"entropy, first fifth": first, "entropy, last fifth": last, "groups of one same answer": share},
        remedy="raise --entropy_loss_coef or the upper clip width (--eps_clip_low_high), lower the learning rate",
        samples=[members[0][0] for members in same[:SHOWN]],
        thin=run.thin(),
    )


def kl_runaway(run: Evidence) -> Answer:
    """The policy leaves the reference faster and faster."""
    kl = run.curve("kl")
    if not kl:
        return Unknown("there is no reference, so no KL was logged")
    band = upper("kl")
    if (grown := outgrown([abs(value) for value in kl], band, times=5)) is None:
        return None
    first, last = grown
    order = sorted(run.last_samples, key=lambda each: _finite(mean_of(each[1], "kl")), reverse=True)
    return Finding(
        what="KL run-away: the policy has left the reference",
        weight=0.5 + 0.5 * beyond(last, band.healthy, 10 * band.red),
        numbers={"kl per token, first fifth": first, "kl per token, last fifth": last, "largest": max(kl, key=abs)},
        remedy="raise --init_kl_coef or set --kl_target; with --use_kl_loss take --kl_estimator k2 or k3",
        samples=shown(order),
        thin=run.thin(),
    )


def engine_mismatch(run: Evidence) -> Answer:
    """The engine samples from another policy than the trainer holds."""
    gap = run.curve("engine_log_prob_diff")
    if not gap:
        return Unknown("the engine gave no log-probs")
    band = upper("engine_log_prob_diff")
    if (grown := outgrown(gap, band, times=3)) is None:
        return None
    first, last = grown
    worst = sorted(((_largest_gap(sample), name) for name, sample in run.last_samples), reverse=True)
    worst = [(each, name) for each, name in worst if each[0] > 0]
    stale = run.curve("staleness")
    numbers = {
        "mean |difference of log-probs|, first fifth": first,
        "mean |difference of log-probs|, last fifth": last,
    }
    if worst:
        (largest, token), _ = worst[0]
        numbers |= {"largest of a stored token": largest, "which stands at token": float(token)}
    if stale:
        numbers["staleness in updates, last fifth"] = ends(stale)[1]
    return Finding(
        what="engine and trainer disagree about the probability of the same tokens",
        weight=0.5 + 0.5 * beyond(last, band.healthy, 10 * band.red),
        numbers=numbers,
        remedy="check that the weights are synchronised, and dtype, top_p and template of the engine; "
        "--enable_vllm_is_correction weighs what remains",
        samples=[name for _, name in worst[:SHOWN]],
        thin=run.thin(),
    )


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _largest_gap(sample: StoredSample) -> tuple[float, int]:
    """|log-prob by the trainer − by the engine| where it is largest, and the token."""
    ours, theirs = sample.per_token.get("log_probs"), sample.per_token.get("engine_log_probs")
    if ours is None or theirs is None or not len(ours):
        return 0.0, 0
    gap = ((ours - theirs) * sample.action_mask).abs()
    return float(gap.max()), int(gap.argmax())
