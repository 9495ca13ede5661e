"""``python -m tests.faults.soak``: thousands of RL steps on Ray, vLLM and DeepSpeed, and what they leave behind.

Memory, open files, threads and processes of the whole tree are read on the way; after ``WARM`` steps they must stay as
they are. Exit code 1 when they do not. ``--write`` keeps the figures in docs/faults.md.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import describe
from benchmarks.table import markdown
from openrlhf.models.tiny import build_model, build_tokenizer
from tests.faults.pages import PAGE, packages_here, with_section
from tests.recipes.helpers import words, write_rows

STEPS, WARM = 2000, 50
MOST_GROWTH = 0.01  # of memory
SILENCE_S = 600.0  # without a step, the run counts as stuck
ENDING_S = 60.0  # for processes to be gone after the run

REWARD = "def reward_func(queries, prompts, labels):\n    return [len(set(query)) / 20 for query in queries]\n"
CLUSTER = {
    "actor_num_gpus_per_node": 1, "ref_num_gpus_per_node": 1, "critic_num_gpus_per_node": 1, "vllm_num_engines": 1,
    "zero_stage": 2,
}  # fmt: skip
LOCAL = {"local": True}


@dataclass(frozen=True)
class Reading:
    """Of all processes of the run after ``step``; ``memory`` in bytes, without that of libraries, shared pages divided
    among who shares them."""

    step: int
    memory: float
    files: float
    threads: float
    processes: float


@dataclass(frozen=True)
class Soak:
    """``first`` and ``last`` are medians of as many readings; ``left`` are processes that outlived the run."""

    code: int
    steps: int
    seconds: float
    first: Reading
    last: Reading
    left: tuple[str, ...]

    @property
    def growth(self) -> float:
        return self.last.memory / self.first.memory - 1

    def faults(self, most_growth: float = MOST_GROWTH) -> list[str]:
        """What did not stay the same, a sentence each."""
        grown = [
            f"{name} went from {before:g} to {after:g}"
            for name in ("files", "threads", "processes")
            if (after := vars(self.last)[name]) > (before := vars(self.first)[name])
        ]
        if self.growth > most_growth:
            grown.append(f"memory grew by {self.growth:.1%}")
        if self.code != 0:
            grown.append(f"the run ended with {self.code}")
        return [*grown, *(f"{name} outlived the run" for name in self.left)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write the figures to docs/{PAGE.name} too")
    parser.add_argument("--local", action="store_true", help="in one process, without Ray, vLLM and DeepSpeed")
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        soak = run(Path(folder), args.steps, LOCAL if args.local else CLUSTER)
    text = section(soak)
    print(text)
    if args.write:
        PAGE.write_text(with_section(PAGE.read_text(encoding="utf-8"), "Soak", text), encoding="utf-8")
    if faults := soak.faults():
        raise SystemExit("; ".join(faults))


def run(folder: Path, steps: int, where: dict[str, Any], warm: int = WARM) -> Soak:
    """``steps`` of RL with checkpoints, watched. Raises RuntimeError with the end of its output when it fails."""
    model = folder / "model"
    build_model(model, vocab_size=len(build_tokenizer(model)), hidden=32, heads=1)
    (folder / "reward.py").write_text(REWARD)
    flags = {
        "pretrain": model, "remote_rm_url": folder / "reward.py", "advantage_estimator": "gae",
        "prompt_data": write_rows(folder / "prompts.jsonl", [{"input": f"say {i}:"} for i in range(10)]),
        "num_episodes": steps // 5, "rollout_batch_size": 2, "n_samples_per_prompt": 2, "train_batch_size": 4,
        "micro_train_batch_size": 2, "prompt_max_len": 16, "generate_max_len": 8, "init_kl_coef": 0.01,
        "save_path": folder / "out", "ckpt_path": folder / "ckpt", "save_steps": max(10, steps // 10),
        "max_ckpt_num": 2, **where,
    }  # fmt: skip
    shown = folder / "shown"
    began = time.monotonic()
    with shown.open("w") as file:
        process = psutil.Popen(
            [sys.executable, "-m", "openrlhf.cli.train_ppo_ray", *words(flags)], stdout=file, stderr=subprocess.STDOUT
        )
        readings, seen = watch(process, folder / "out" / "metrics.jsonl", max(1, steps // 100))
    code = process.wait(timeout=ENDING_S)
    warmed = [reading for reading in readings if reading.step > warm]
    window = len(warmed) // 4
    if code != 0 or window == 0:
        raise RuntimeError(f"the run ended with {code}; the end of its output:\n{shown.read_text()[-3000:]}")
    first, last = middle(warmed[:window]), middle(warmed[-window:])
    return Soak(code, steps, time.monotonic() - began, first, last, tuple(outlived(seen)))


def watch(process: psutil.Popen, log: Path, every: int) -> tuple[list[Reading], set[psutil.Process]]:
    """A reading each ``every`` steps until the process ends, and all processes there were."""
    readings: list[Reading] = []
    seen: set[psutil.Process] = set()
    step, since = 0, time.monotonic()
    while process.poll() is None:
        time.sleep(0.05)
        done = log.read_bytes().count(b"\n") if log.exists() else 0
        if done == step:
            if time.monotonic() - since > SILENCE_S:
                process.kill()
            continue
        if done // every > step // every:
            tree = [process, *process.children(recursive=True)]
            seen |= set(tree)
            readings.append(read(done, tree))
        step, since = done, time.monotonic()
    return readings, seen


def read(step: int, tree: Sequence[psutil.Process]) -> Reading:
    memory = files = threads = 0
    for process in tree:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, OSError):  # it ended meanwhile
            memory += own_memory(process.pid)
            files += process.num_fds()
            threads += process.num_threads()
    return Reading(step, memory, files, threads, len(tree))


def own_memory(pid: int) -> int:
    """Bytes. The pages of libraries do not count: how many processes share them depends on what else runs here."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in lines)}
    return 1024 * (kilobytes["Pss_Anon"] + kilobytes["Pss_Shmem"])


def middle(readings: Sequence[Reading]) -> Reading:
    """The middle step and memory; of the counts the least, since a thread that writes a checkpoint comes and goes."""

    def column(name: str) -> list[float]:
        return [vars(reading)[name] for reading in readings]

    least = {name: min(column(name)) for name in ("files", "threads", "processes")}
    return Reading(round(statistics.median(column("step"))), statistics.median(column("memory")), **least)


def outlived(seen: set[psutil.Process]) -> list[str]:
    """Those that are alive ``ENDING_S`` after the run; one that ended and waits for its parent is not."""
    until = time.monotonic() + ENDING_S
    while (alive := [name for process in seen if (name := alive_name(process))]) and time.monotonic() < until:
        time.sleep(0.5)
    return alive


def alive_name(process: psutil.Process) -> str | None:
    with suppress(psutil.NoSuchProcess):
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            return process.name()
    return None


def section(soak: Soak) -> str:
    """The figures as Markdown."""
    rows = [
        [f"{reading.step:.0f}", f"{reading.memory / 2**20:.1f} MiB"]
        + [f"{count:g}" for count in (reading.files, reading.threads, reading.processes)]
        for reading in (soak.first, soak.last)
    ]
    return "\n\n".join(
        [
            f"`make soak`, {describe(packages_here())}: {soak.steps} steps in {soak.seconds:.0f} s. A line is a "
            f"quarter of the readings after step {WARM}, named by its middle step: the median of memory, without that "
            "of libraries, and the least of the counts. Memory grew by "
            f"{soak.growth:.2%}; {len(soak.left)} processes outlived the run.",
            markdown(("step", "memory", "open files", "threads", "processes"), rows),
        ]
    )


if __name__ == "__main__":
    main()
