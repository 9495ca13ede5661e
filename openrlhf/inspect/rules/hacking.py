"""A reward that rises while answers get no better."""

from __future__ import annotations

import math
from statistics import fmean

from openrlhf.inspect.evidence import (
    Evidence,
    answer,
    ends,
    length,
    most_common_edge,
    within_groups,
)
from openrlhf.inspect.rules.finding import SHOWN, Answer, Finding, Unknown, shown

EDGE = 12  # characters of an answer's beginning or end


def length_hacking(run: Evidence) -> Answer:
    """The reward follows the length within groups, the length has changed a lot, and nothing else says it is better."""
    lengths = run.curve("response_length")
    # Where all answers have become alike, nothing varies any more: what drove them there is seen before.
    parts = {"first": run.early, "middle": run.middle, "last": run.late}
    seen = {when: found for when, steps in parts.items() if (found := within_groups(steps)) is not None}
    if not lengths or not seen:
        return Unknown("no samples whose reward and length differ within a group")
    first, last = ends(lengths)
    grown = last / max(first, 1e-6)
    strongest = max(seen.values(), key=abs)
    longer = strongest > 0.5 and grown > 1.5
    shorter = strongest < -0.5 and grown < 1 / 1.5
    if not (longer or shorter) or _better(run):
        return None
    title = "the reward follows the length" if _only_reward(run) else "reward hacking by length"
    order = sorted(run.last_samples, key=lambda each: length(each[1]), reverse=longer)
    return Finding(
        what=f"{title}: {'longer' if longer else 'shorter'} answers get more",
        weight=0.5 + 0.5 * abs(strongest),
        numbers={
            **{f"correlation of reward and length within groups, {when} steps": each for when, each in seen.items()},
            "response_length, first fifth": first,
            "response_length, last fifth": last,
        },
        remedy="take length out of the reward, or make it cost: --overlong_buffer_len, --stop_properly_penalty_coef",
        samples=shown(order),
        thin=run.thin(samples=True) or _only_reward(run),
    )


def format_hacking(run: Evidence) -> Answer:
    """The reward rose by a fixed phrase: answers to different prompts begin or end alike, and did not before."""
    if not run.last_samples:
        return Unknown("no samples are stored")
    rewards = run.curve("reward")
    first, last = ends(rewards) if rewards else (math.nan, math.nan)
    share, phrase, names = most_common_edge(run.last_samples, EDGE)
    # Of the first step alone: a phrase may be learnt within a few.
    before = fmean([phrase in answer(sample) for sample in run.early[0].samples])
    prompts = len({sample.prompt_id for name, sample in run.last_samples if name in set(names)})
    different = len({answer(sample) for name, sample in run.last_samples if name in set(names)})
    if different < 3:
        return None  # the answers are the same altogether: a collapse
    if share < 0.6 or before > 0.3 or prompts < 3 or not last > first or _better(run):
        return None
    parts = _falling_parts(run)
    return Finding(
        what=f"reward hacking by format: {share:.0%} of the answers share {phrase!r}, and the reward rose with it",
        weight=0.5 + 0.5 * share - (0.0 if parts else 0.1),
        numbers={
            "share of answers with the phrase, first step": before,
            "share of answers with the phrase, last steps": share,
            "reward, first fifth": first,
            "reward, last fifth": last,
            **parts,
        },
        remedy="read these answers; reward what a phrase cannot fake, or give the format a smaller weight",
        samples=names[:SHOWN],
        thin=run.thin(samples=True) or _only_reward(run),
    )


def _better(run: Evidence) -> bool:
    """Whether something besides the reward says that answers got better."""
    if run.own_score and run.curve("score"):
        first, last = ends(run.curve("score"))
        return last > first + 0.05
    rates = [run.curve(name) for name in {n for line in run.lines for n in line if n.endswith("_pass1")}]
    return any(len(values) > 1 and values[-1] > values[0] + 0.02 for values in rates)


def _only_reward(run: Evidence) -> str:
    """Why hacking cannot be told from learning, or nothing."""
    evaluated = any(name.endswith("_pass1") for line in run.lines for name in line)
    return "" if run.own_score or evaluated else "nothing but the reward itself says whether answers got better"


def _falling_parts(run: Evidence) -> dict[str, float]:
    """The parts of the reward, and the score, that fell meanwhile."""
    names = {name for line in run.lines for name in line if name.startswith("reward/") or name == "score"}
    moved = {name: ends(run.curve(name)) for name in sorted(names - {"reward/invalid"})}
    return {
        f"{name}, {when} fifth": value
        for name, (first, last) in moved.items()
        if last < first
        for when, value in (("first", first), ("last", last))
    }
