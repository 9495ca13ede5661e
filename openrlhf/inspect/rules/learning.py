"""Updates that go too far, not far enough, or nowhere."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import fmean, median

from openrlhf.inspect.evidence import Evidence, ends, worst_fifth
from openrlhf.inspect.rules.finding import SHOWN, Answer, Finding, Unknown
from openrlhf.training.bands import BANDS
from openrlhf.training.metric_names import EVALUATED

LEAP = 1.0  # nats a token between the policy before and after the steps on one rollout batch


def learning_rate_too_high(run: Evidence) -> Answer:
    """Updates go too far: gradients explode, the clip range is left, and what was gained is lost."""
    signs = {}
    for name in ("clip_ratio", "ppo_kl", "grad_norm"):
        values = [abs(value) for value in run.curve(name)]
        # Anywhere in the run: a policy that such updates have broken no longer moves, and is quiet at the end.
        if values and BANDS[name].verdict(worst := worst_fifth(values)) == "red":
            signs[f"{name}, worst fifth"] = worst
    norms = run.curve("grad_norm")
    if len(norms) >= 5 and ends(norms)[1] > 10 * median(norms[: max(3, len(norms) // 3)]):
        signs |= {"grad_norm, first fifth": ends(norms)[0], "grad_norm, last fifth": ends(norms)[1]}
    lost = _lost(run)
    if not signs and not lost:
        if not run.curve("grad_norm"):
            return Unknown("no gradient norm was logged")
        return None
    # Nothing else explains a move that far on one rollout batch, whatever became of the reward.
    leap = signs.get("ppo_kl, worst fifth", 0.0) > LEAP
    if not (signs and lost) and len(signs) < 2 and not leap:
        return None
    rates = run.curve("lr")
    return Finding(
        what="learning rate too high: the updates go too far" + (", and what was learnt is lost again" if lost else ""),
        weight=min(1.0, 0.5 + 0.2 * len(signs) + (0.2 if lost else 0.0)),
        numbers={**signs, **lost, **({"highest lr": max(rates)} if rates else {})},
        remedy="lower --actor_learning_rate (or --learning_rate), raise --lr_warmup_ratio, fewer --max_epochs",
        thin=run.thin(),
    )


def learning_rate_too_low(run: Evidence) -> Answer:
    """Nothing moves: the policy is still the reference, and the reward is where it was."""
    kl, rewards = run.curve("kl"), run.curve("reward")
    if not kl or not rewards:
        return Unknown("whether the policy moved is seen from its KL to a reference, and there is none")
    moved = max(abs(value) for value in kl)
    first, last = ends(rewards)
    spread = fmean(run.curve("reward_std") or [0.0])
    advantages = run.curve("advantage_std")
    if advantages and BANDS["advantage_std"].verdict(max(advantages)) == "red":
        return None  # no rate would move it
    if len(run.lines) < 5 or moved > 1e-4 or spread == 0:
        return None
    if abs(last - first) > max(0.2 * spread, 3 * _noise_of_ends(rewards)) + 1e-9:
        return None
    return Finding(
        what="learning rate too low: the policy is still where it began",
        weight=0.5,
        numbers={"largest kl per token": moved, "reward, first fifth": first, "reward, last fifth": last}
        | ({"highest lr": max(run.curve("lr"))} if run.curve("lr") else {}),
        remedy="raise --actor_learning_rate; see that --lr_warmup_ratio leaves the warm-up",
        thin=run.thin(),
    )


def loss_rises(run: Evidence) -> Answer:
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


def not_finite(run: Evidence) -> Answer:
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


def _noise_of_ends(values: list[float]) -> float:
    """The standard error of the difference of the two ends of a curve, by how much neighbours differ: a trend adds
    little to that."""
    between = fmean([(after - before) ** 2 for before, after in pairwise(values)])
    return math.sqrt(between / max(1, len(values) // 5))  # the mean square is twice the variance of one value


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
