"""Samples that teach nothing: without a difference, without an end, without a reward."""

from __future__ import annotations

import math
from statistics import fmean

from openrlhf.inspect.evidence import (
    Evidence,
    ends,
    groups,
    named,
)
from openrlhf.inspect.rules.finding import SHOWN, Answer, Finding, Unknown, outgrown, shown, upper


def dead_groups(run: Evidence) -> Answer:
    """All samples of a prompt have the same reward: every advantage is 0, and the step learns nothing from it."""
    every = list(groups(run.late))
    if not every:
        return Unknown("no prompt has several stored samples")
    dead = [members for members in every if len({sample.outcome for _, sample in members}) == 1]
    share = len(dead) / len(every)
    if share <= upper("dead_groups").healthy:
        return None
    outcomes = [members[0][1].outcome for members in dead]
    seen = {sample.outcome for steps in (run.early, run.middle, run.late) for _, sample in named(steps)}
    top, differ = max(seen), len(seen) > 1  # where nothing differs, nobody knows what the best reward is
    return Finding(
        what=f"dead groups: {share:.0%} of the prompts have samples of one same reward",
        weight=share,
        numbers={
            "share of dead groups, last steps": share,
            **({"of these with the highest reward (too easy)": fmean(o == top for o in outcomes)} if differ else {}),
            "mean reward of dead groups": fmean(outcomes),
        },
        remedy="--dynamic_filtering replaces such prompts; easier or harder prompts, more --n_samples_per_prompt",
        samples=[members[0][0] for members in dead[:SHOWN]],
        thin=run.thin(samples=True),
    )


def truncation(run: Evidence) -> Answer:
    """Answers end at the length limit."""
    cut = run.curve("truncated")
    if not cut:
        return Unknown("no answers were sampled")
    if (grown := outgrown(cut, upper("truncated"), times=2)) is None:
        return None
    first, last = grown
    truncated = [each for each in run.last_samples if each[1].truncated]
    whole = [sample.outcome for _, sample in run.last_samples if not sample.truncated]
    numbers = {"share truncated, first fifth": first, "share truncated, last fifth": last}
    if truncated:
        numbers["mean reward of truncated samples"] = fmean([sample.outcome for _, sample in truncated])
    if whole:
        numbers["mean reward of the others"] = fmean(whole)
    return Finding(
        what=f"truncation: {last:.0%} of the answers are cut at the length limit",
        weight=0.4 + 0.5 * last,
        numbers=numbers,
        remedy="raise --generate_max_len; --overlong_buffer_len makes length cost before the limit",
        samples=shown(truncated),
        thin=run.thin(),
    )


def invalid_rewards(run: Evidence) -> Answer:
    """Rewards that failed, or are no numbers."""
    if not run.curve("reward"):
        return Unknown("this run has no rewards")
    shares = run.curve("reward/invalid")
    bad = [name for name, sample in run.last_samples if not math.isfinite(sample.outcome)]
    last = ends(shares)[1] if shares else 0.0
    if not bad and max(shares, default=0.0) <= upper("reward/invalid").healthy:
        return None
    return Finding(
        what="invalid rewards: the reward function or the agent fails",
        weight=min(1.0, 0.4 + max(shares, default=0.0) + (0.4 if bad else 0.0)),
        numbers={
            "share left out, largest": max(shares, default=0.0),
            "share left out, last fifth": last,
            "stored rewards that are no numbers": float(len(bad)),
        },
        remedy="read the run's output for what failed; --reward_timeout gives the function more time",
        samples=bad[:SHOWN],
        thin=run.thin(),
    )
