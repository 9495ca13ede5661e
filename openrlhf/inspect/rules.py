"""What may go wrong in a run, one function each: evidence → a finding, None, or why nothing can be said.

Thresholds are those of ``training/bands.py`` where there is one. A finding names its numbers and samples to look at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

from openrlhf.inspect.evidence import (
    Evidence,
    Named,
    answer,
    ends,
    groups,
    length,
    mean_of,
    most_common_edge,
    within_groups,
)
from openrlhf.training.bands import BANDS
from openrlhf.training.metric_names import EVALUATED
from openrlhf.training.sample_file import StoredSample

SHOWN = 5  # samples that a finding names
EDGE = 12  # characters of an answer's beginning or end


@dataclass(frozen=True)
class Finding:
    """``weight``: how bad, from 0 to 1. ``thin``: why the evidence is thin, or nothing."""

    what: str
    weight: float
    numbers: dict[str, float]
    remedy: str
    samples: Sequence[str] = ()
    thin: str = ""
    rule: str = field(default="", compare=False)


@dataclass(frozen=True)
class Unknown:
    """The rule cannot say anything about this run."""

    why: str


Rule = Callable[[Evidence], Finding | Unknown | None]


def entropy_collapse(run: Evidence) -> Finding | Unknown | None:
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
        weight=0.6 + 0.4 * _beyond(first / max(last, 1e-6), 5, 100),
        numbers={"entropy, first fifth": first, "entropy, last fifth": last, "groups of one same answer": share},
        remedy="raise --entropy_loss_coef or the upper clip width (--eps_clip_low_high), lower the learning rate",
        samples=[members[0][0] for members in same[:SHOWN]],
        thin=run.thin(),
    )


def length_hacking(run: Evidence) -> Finding | Unknown | None:
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
        samples=_names(order),
        thin=run.thin(samples=True) or _only_reward(run),
    )


def format_hacking(run: Evidence) -> Finding | Unknown | None:
    """The reward rose by a fixed phrase: answers to different prompts begin or end alike, and did not before."""
    if not run.last_samples:
        return Unknown("no samples are stored")
    rewards = run.curve("reward")
    first, last = ends(rewards) if rewards else (math.nan, math.nan)
    share, phrase, names = most_common_edge(run.last_samples, EDGE)
    before = fmean([phrase in answer(sample) for _, sample in run.first_samples])
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
            "share of answers with the phrase, first steps": before,
            "share of answers with the phrase, last steps": share,
            "reward, first fifth": first,
            "reward, last fifth": last,
            **parts,
        },
        remedy="read these answers; reward what a phrase cannot fake, or give the format a smaller weight",
        samples=names[:SHOWN],
        thin=run.thin(samples=True) or _only_reward(run),
    )


def kl_runaway(run: Evidence) -> Finding | Unknown | None:
    """The policy leaves the reference faster and faster."""
    kl = run.curve("kl")
    if not kl:
        return Unknown("there is no reference, so no KL was logged")
    first, last = ends([abs(value) for value in kl])
    red, healthy = BANDS["kl"].red[1] or math.inf, BANDS["kl"].healthy[1] or math.inf
    if last <= healthy or (last <= red and last < 5 * first):
        return None
    order = sorted(run.last_samples, key=lambda each: _finite(mean_of(each[1], "kl")), reverse=True)
    return Finding(
        what="KL run-away: the policy has left the reference",
        weight=0.5 + 0.5 * _beyond(last, healthy, 10 * red),
        numbers={"kl per token, first fifth": first, "kl per token, last fifth": last, "largest": max(kl, key=abs)},
        remedy="raise --init_kl_coef or set --kl_target; with --use_kl_loss take --kl_estimator k2 or k3",
        samples=_names(order),
        thin=run.thin(),
    )


def engine_mismatch(run: Evidence) -> Finding | Unknown | None:
    """The engine samples from another policy than the trainer holds."""
    gap = run.curve("engine_log_prob_diff")
    if not gap:
        return Unknown("the engine gave no log-probs")
    first, last = ends(gap)
    healthy, red = BANDS["engine_log_prob_diff"].healthy[1] or 0.0, BANDS["engine_log_prob_diff"].red[1] or 0.0
    if last <= healthy or (last <= red and last < 3 * first):
        return None
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
        weight=0.5 + 0.5 * _beyond(last, healthy, 10 * red),
        numbers=numbers,
        remedy="check that the weights are synchronised, and dtype, top_p and template of the engine; "
        "--enable_vllm_is_correction weighs what remains",
        samples=[name for _, name in worst[:SHOWN]],
        thin=run.thin(),
    )


def dead_groups(run: Evidence) -> Finding | Unknown | None:
    """All samples of a prompt have the same reward: every advantage is 0, and the step learns nothing from it."""
    every = list(groups(run.late))
    if not every:
        return Unknown("no prompt has several stored samples")
    dead = [members for members in every if len({sample.outcome for _, sample in members}) == 1]
    share = len(dead) / len(every)
    if share <= (BANDS["dead_groups"].healthy[1] or 0.0):
        return None
    outcomes = [members[0][1].outcome for members in dead]
    top = max(sample.outcome for _, sample in run.last_samples)
    return Finding(
        what=f"dead groups: {share:.0%} of the prompts have samples of one same reward",
        weight=share if share < 1 else 1.0,
        numbers={
            "share of dead groups, last steps": share,
            "of these with the highest reward (too easy)": fmean([outcome == top for outcome in outcomes]),
            "mean reward of dead groups": fmean(outcomes),
        },
        remedy="--dynamic_filtering replaces such prompts; easier or harder prompts, more --n_samples_per_prompt",
        samples=[members[0][0] for members in dead[:SHOWN]],
        thin=run.thin(samples=True),
    )


def truncation(run: Evidence) -> Finding | Unknown | None:
    """Answers end at the length limit."""
    cut = run.curve("truncated")
    if not cut:
        return Unknown("no answers were sampled")
    first, last = ends(cut)
    healthy, red = BANDS["truncated"].healthy[1] or 0.0, BANDS["truncated"].red[1] or 1.0
    if last <= healthy or (last <= red and last < 2 * first):
        return None
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
        samples=_names(truncated),
        thin=run.thin(),
    )


def learning_rate_too_high(run: Evidence) -> Finding | Unknown | None:
    """Updates go too far: gradients explode, the clip range is left, and what was gained is lost."""
    signs = {}
    for name in ("clip_ratio", "ppo_kl", "grad_norm"):
        values = [abs(value) for value in run.curve(name)]
        if values and BANDS[name].verdict(ends(values)[1]) == "red":
            signs[f"{name}, last fifth"] = ends(values)[1]
    norms = run.curve("grad_norm")
    if len(norms) >= 5 and ends(norms)[1] > 10 * median(norms[: max(3, len(norms) // 3)]):
        signs |= {"grad_norm, first fifth": ends(norms)[0], "grad_norm, last fifth": ends(norms)[1]}
    lost = _lost(run)
    if not signs and not lost:
        if not run.curve("grad_norm"):
            return Unknown("no gradient norm was logged")
        return None
    if not (signs and lost) and len(signs) < 2:
        return None
    rates = run.curve("lr")
    return Finding(
        what="learning rate too high: the updates go too far" + (", and what was learnt is lost again" if lost else ""),
        weight=min(1.0, 0.5 + 0.2 * len(signs) + (0.2 if lost else 0.0)),
        numbers={**signs, **lost, **({"highest lr": max(rates)} if rates else {})},
        remedy="lower --actor_learning_rate (or --learning_rate), raise --lr_warmup_ratio, fewer --max_epochs",
        thin=run.thin(),
    )


def learning_rate_too_low(run: Evidence) -> Finding | Unknown | None:
    """Nothing moves: the policy is still the reference, and the reward is where it was."""
    kl, rewards = run.curve("kl"), run.curve("reward")
    if not kl or not rewards:
        return Unknown("whether the policy moved is seen from its KL to a reference, and there is none")
    moved = max(abs(value) for value in kl)
    first, last = ends(rewards)
    spread = fmean(run.curve("reward_std") or [0.0])
    if len(run.lines) < 5 or moved > 1e-4 or abs(last - first) > 0.2 * spread + 1e-9 or spread == 0:
        return None
    return Finding(
        what="learning rate too low: the policy is still where it began",
        weight=0.5,
        numbers={"largest kl per token": moved, "reward, first fifth": first, "reward, last fifth": last}
        | ({"highest lr": max(run.curve("lr"))} if run.curve("lr") else {}),
        remedy="raise --actor_learning_rate; see that --lr_warmup_ratio leaves the warm-up",
        thin=run.thin(),
    )


def invalid_rewards(run: Evidence) -> Finding | Unknown | None:
    """Rewards that failed, or are no numbers."""
    if not run.curve("reward"):
        return Unknown("this run has no rewards")
    shares = run.curve("reward/invalid")
    bad = [name for name, sample in run.last_samples if not math.isfinite(sample.outcome)]
    last = ends(shares)[1] if shares else 0.0
    if not bad and max(shares, default=0.0) <= (BANDS["reward/invalid"].healthy[1] or 0.0):
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


def not_finite(run: Evidence) -> Finding | Unknown | None:
    """Optimizer steps that were left out, or metrics that are no numbers."""
    skipped = sum(run.curve("skipped_steps")) + sum(run.curve("critic_skipped_steps"))
    names = {name for line in run.lines for name, value in line.items() if not math.isfinite(value)}
    if not skipped and not names and not run.skipped:
        return None
    kind = "group" if run.curve("reward") else "row"
    rows = dict.fromkeys(f"step {line['step']} {kind} {row}" for line in run.skipped for row in line["rows"])
    return Finding(
        what="losses, gradients or metrics that are not finite" + (f": {', '.join(sorted(names))}" if names else ""),
        weight=0.9,
        numbers={"optimizer steps left out": max(float(skipped), float(len(run.skipped)))},
        remedy="look at the named samples; a smaller learning rate, --bf16 without other half precisions",
        samples=list(rows)[:SHOWN],
        thin=run.thin(),
    )


def loss_rises(run: Evidence) -> Finding | Unknown | None:
    """Of supervised training: the loss, or that of the evaluation, goes up."""
    if run.curve("reward"):
        return Unknown("of supervised training only")
    numbers: dict[str, float] = {}
    for name in ("loss", EVALUATED + "loss"):
        values = run.curve(name)
        if len(values) >= 3 and ends(values)[1] > 1.1 * min(values) + 1e-3:
            numbers |= {f"{name}, lowest": min(values), f"{name}, last fifth": ends(values)[1]}
    if not numbers:
        return None
    evaluated = f"{EVALUATED}loss, lowest" in numbers
    return Finding(
        what="the loss of the evaluation rises: the model learns its rows by heart" if evaluated else "the loss rises",
        weight=0.5,
        numbers=numbers,
        remedy="fewer --max_epochs or more rows" if evaluated else "a smaller --learning_rate",
        thin=run.thin(),
    )


RULES: dict[str, Rule] = {
    "not_finite": not_finite,
    "invalid_rewards": invalid_rewards,
    "engine_mismatch": engine_mismatch,
    "kl_runaway": kl_runaway,
    "entropy_collapse": entropy_collapse,
    "learning_rate_too_high": learning_rate_too_high,
    "learning_rate_too_low": learning_rate_too_low,
    "length_hacking": length_hacking,
    "format_hacking": format_hacking,
    "dead_groups": dead_groups,
    "truncation": truncation,
    "loss_rises": loss_rises,
}


def _beyond(value: float, good: float, bad: float) -> float:
    """Where ``value`` lies between good (0) and bad (1), on a scale of factors."""
    if not math.isfinite(value):
        return 1.0
    return min(1.0, max(0.0, math.log(max(value, 1e-12) / good) / math.log(bad / good)))


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _names(samples: Sequence[Named]) -> list[str]:
    return [name for name, _ in samples[:SHOWN]]


def _largest_gap(sample: StoredSample) -> tuple[float, int]:
    """|log-prob by the trainer − by the engine| where it is largest, and the token."""
    ours, theirs = sample.per_token.get("log_probs"), sample.per_token.get("engine_log_probs")
    if ours is None or theirs is None or not len(ours):
        return 0.0, 0
    gap = ((ours - theirs) * sample.action_mask).abs()
    return float(gap.max()), int(gap.argmax())


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


def _lost(run: Evidence) -> dict[str, float]:
    """The best reward of five steps in a row and what is left of it, where much was gained and half of that lost."""
    rewards = run.curve("reward")
    if len(rewards) < 10:
        return {}
    smooth = [fmean(rewards[i : i + 5]) for i in range(len(rewards) - 4)]
    best, last = max(smooth), smooth[-1]
    noise = fmean(run.curve("reward_std") or [0.0])
    if best - last > max(0.5 * (best - smooth[0]), 0.3 * noise, 1e-6):
        return {"best reward over five steps": best, "reward over the last five": last}
    return {}
