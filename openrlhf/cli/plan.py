"""``openrlhf plan [COMMAND] --model SIZE --cluster GPUS --flag value ...``: which layouts of a run fit, and how fast.

COMMAND is ppo (default), sft, rm, dpo, kto, kd or prm. Its flags may follow: what is given stays as it is, and the
layout of the rest is searched for. Nothing is loaded or started; the three best come out as command lines.

  --model M         0.5B, 1.5B, 3B, 7B, 8B, 14B, 32B, 70B, 405B; HIDDENxLAYERS, as 4096x32; a model folder or hub name
  --cluster C       8xH100-80G, or 2x8xH100-80G for two machines
  --critic_model, --reward_model, --teacher M
                    other models (default: a critic and teacher of the size of --model; no reward model)

The exit code is 1 when no layout fits.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openrlhf.config.commands import COMMANDS, KDConfig, PPOConfig, TrainCommand, build, groups
from openrlhf.config.parse import parse_flags

if TYPE_CHECKING:
    from openrlhf.plan.cluster import Cluster
    from openrlhf.plan.estimate import Shapes
    from openrlhf.plan.layouts import Layout

OWN = ("model", "cluster", "critic_model", "reward_model", "teacher")
VERBS_TO_PLAN = ("ppo", "sft", "rm", "dpo", "kto", "kd", "prm")
# What a printed command needs and a plan does not: to be filled in.
PLACES = {
    "pretrain": "MODEL", "dataset": "DATA", "prompt_data": "PROMPTS", "teacher_model": "TEACHER",
    "placeholder_token": "STEP",
}  # fmt: skip
MOST = 4  # times as many machines that are tried, doubling, when nothing fits


def main(argv: list[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        raise SystemExit(0 if words else 2)
    try:
        verb, own, rest = take_apart(words)
        command = COMMANDS[verb]
        given = parse_flags(command, rest)  # type: ignore[type-var]
        code = run(verb, own, given)
    except ValueError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    if code:
        raise SystemExit(code)


def run(verb: str, own: dict[str, str], given: dict[str, Any]) -> int:
    """Search, print, and answer with the exit code. Raises ValueError for a model or cluster that is none."""
    from openrlhf.plan.cluster import parse_cluster
    from openrlhf.plan.layouts import best, left_out, search

    command = training_command(verb)
    cluster = parse_cluster(own["cluster"], "--cluster")
    given = completed(command, own, given)
    shapes = shapes_of(command, own, given)
    print(f"{verb}: {shapes.policy.parameters / 1e9:.3g}B parameters on {cluster}")
    fitting, refused = search(command, given, shapes, cluster)
    reasons = left_out(command, given, cluster, [*fitting, *refused])
    if not fitting:
        print(refusal(command, given, shapes, cluster, refused))
    for number, layout in enumerate(best(fitting), 1):
        print(f"\n{number}. {described(layout, cluster)}")
        print(f"   {line(verb, layout, cluster)}")
    for kind, reason in reasons.items():
        print(f"\nnot looked at, {kind}: {reason}")
    return 0 if fitting else 1


def described(layout: Layout, cluster: Cluster) -> str:
    """Seconds, memory and what binds, in a few lines."""
    from openrlhf.plan.estimate import shown
    from openrlhf.plan.memory import total

    found = layout.estimate
    times = ", ".join(f"{name} {_seconds(value)}" for name, value in found.phases.items())
    lines = [f"{layout.kind}: about {_seconds(found.step)} s a step ({times})"]
    for room in found.rooms:
        full = f"{total(room.parts) / 1e9:.1f} of {room.usable / 1e9:.1f} GB"
        beside = f"; {room.host / 1e9:.0f} GB of host memory each" if room.host else ""
        lines.append(
            f"   {room.pool} on {room.devices} GPU{'s' * (room.devices > 1)}: {full} ({shown(room.parts)}){beside}"
        )
    slots = f"; an engine writes {found.slots} texts at a time" if found.slots else ""
    return "\n".join([*lines, f"   limit: {found.binds}{slots}"])


def _seconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def refusal(
    command: type[TrainCommand], given: dict[str, Any], shapes: Shapes, cluster: Cluster, refused: Sequence[Layout]
) -> str:
    """Why the nearest layout does not fit, and how many machines would do."""
    from dataclasses import replace

    from openrlhf.plan.layouts import search

    if not refused:
        return "no layout keeps the rules of the flags on these GPUs."
    lines = [f"no layout fits. The nearest ({refused[0].kind}): {refused[0].estimate.problem}."]
    nodes = cluster.nodes
    while (nodes := 2 * nodes) <= MOST * cluster.nodes:
        larger = replace(cluster, nodes=nodes)
        if search(command, given, shapes, larger)[0]:
            return "\n".join([*lines, f"--cluster {larger} would do."])
    return "\n".join([*lines, f"Even --cluster {replace(cluster, nodes=nodes // 2)} would not do."])


def line(verb: str, layout: Layout, cluster: Cluster) -> str:
    """The command line of a layout, ready but for the names in capitals."""
    from shlex import join

    start = ["openrlhf", "ppo"] if verb == "ppo" else ["deepspeed"]
    if verb != "ppo":
        start += [*(["--num_nodes", str(cluster.nodes)] if cluster.nodes > 1 else []), "--num_gpus"]
        start += [str(cluster.per_node), "--module", f"openrlhf.cli.train_{verb}"]
    return join([*start, *layout.words()])


def training_command(verb: str) -> type[TrainCommand]:
    found: type[TrainCommand] = COMMANDS[verb]  # type: ignore[assignment]
    return found


def completed(command: type[TrainCommand], own: dict[str, str], given: dict[str, Any]) -> dict[str, Any]:
    """The flags that the command needs, and those that follow from the models."""
    from openrlhf.config.commands import types

    needs = {name: place for name, place in PLACES.items() if name in types(command)}
    named = {"pretrain": own["model"]} if "/" in own["model"] or Path(own["model"]).exists() else {}
    found = {**needs, **named, **given}
    if command is PPOConfig:
        if "reward_model" in own:
            found = {"reward_pretrain": "REWARD_MODEL", **found}
        elif not {"reward_pretrain", "remote_rm_url", "agent_func_path"} & set(given):
            found = {"remote_rm_url": "reward.py", **found}
    elif "output_key" in types(command) and not given.get("apply_chat_template"):
        found = {"output_key": "ANSWER", **found}
    return found


def shapes_of(command: type[TrainCommand], own: dict[str, str], given: dict[str, Any]) -> Shapes:
    """Raises ValueError naming the flag of a model that is none."""
    from openrlhf.config.commands import DPOConfig, KTOConfig
    from openrlhf.plan.estimate import Shapes
    from openrlhf.plan.shape import find_shape

    model = build(command, given).model  # type: ignore[type-var]
    policy = find_shape(own["model"], "--model", model, scores="reward_training" in groups(command))
    if command is PPOConfig:
        critic = find_shape(own.get("critic_model", own["model"]), "--critic_model", model, scores=True)
        several = own["reward_model"].split(",") if "reward_model" in own else []
        return Shapes(policy, critic, [find_shape(each, "--reward_model", model, scores=True) for each in several])
    if command is KDConfig:
        return Shapes(policy, other=find_shape(own.get("teacher", own["model"]), "--teacher", model))
    same = command in (DPOConfig, KTOConfig) and model.lora_rank == 0
    return Shapes(policy, other=policy if same else None)


def take_apart(words: Sequence[str]) -> tuple[str, dict[str, str], list[str]]:
    """The command, the flags of the plan, and the rest. Raises ValueError where one is missing."""
    from openrlhf.cli.check import own_flags

    rest, own = own_flags(words, OWN)
    named = bool(rest) and not rest[0].startswith("-")
    verb = rest.pop(0).removeprefix("train_").removesuffix("_ray") if named else "ppo"
    if verb not in VERBS_TO_PLAN:
        raise ValueError(f"openrlhf plan {verb}: choose one of {', '.join(VERBS_TO_PLAN)}.")
    if missing := [f"--{name}" for name in ("model", "cluster") if name not in own]:
        raise ValueError(f"openrlhf plan needs {' and '.join(missing)}, as in --model 8B --cluster 8xH100-80G.")
    return verb, own, rest


if __name__ == "__main__":
    main()
