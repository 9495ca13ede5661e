"""How the driver's memory grows with the number of samples of a step, up to where it ends, and how a run ends there.

The program is that of ``controller.py``, roles that answer at once, in a process that may have so much memory and no
more.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from itertools import count

from benchmarks.controller import GROUP, run, settings
from benchmarks.machine import describe
from benchmarks.rounds import ENVIRONMENT
from benchmarks.table import markdown

LIMIT = 4 * 2**30
FIRST = {256: 16384, 4096: 1024}  # tokens: samples
DEADLINE_S = 400.0
EXPONENT_GOAL = 1.1


@dataclass(frozen=True)
class Case:
    """``peak`` and ``start`` are bytes. Without seconds memory did not suffice; ``words`` are the run's last."""

    tokens: int
    samples: int
    seconds: float | None
    start: int
    peak: int
    words: str


def growth_table() -> str:
    """Every case in a process of its own, twice as many samples each time until memory ends."""
    cases: list[Case] = []
    for tokens, first in FIRST.items():
        for doubled in count():
            cases.append(measured(first * 2**doubled, tokens))
            if cases[-1].seconds is None:
                break
    intro = f"""\
## Samples of a step, to where memory ends

{describe(("torch",))}.
The controller's program again, one rank, in a process that may take {LIMIT / 2**30:.0f} GiB of data (`RLIMIT_DATA`), \
with twice as many samples each time. Groups of {GROUP} samples, answers of lognormal length. Memory: what the process \
grew by since its imports. CPU seconds of a step."""
    return intro + "\n\n" + summarise(cases)


def measured(samples: int, tokens: int) -> Case:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.growth", str(samples), str(tokens)],
        capture_output=True, text=True, timeout=DEADLINE_S, env={**os.environ, **ENVIRONMENT},
    )  # fmt: skip
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode == 0:
        return Case(tokens, samples, found[-1]["seconds"], found[0]["start"], found[-1]["peak"], "")
    if not found:
        raise RuntimeError(f"growth to {samples} samples ended with {done.returncode}: {done.stderr[-2000:]}")
    return Case(tokens, samples, None, found[0]["start"], 0, ending(done.returncode, done.stderr))


def ending(code: int, errors: str) -> str:
    """The exit code, and what the run said of memory and of ways out."""
    said = [line for line in errors.splitlines() if line.startswith(("memory ran out", "- "))]
    return f"exit code {code}: {' '.join(said)}" if said else f"exit code {code}, without a word"


def summarise(cases: list[Case]) -> str:
    """A row a case, and for each length what a sample takes and the exponent, from the least to the most."""
    rows = []
    for case in cases:
        what = f"{case.samples // GROUP:,} prompts, {case.samples:,} samples of {case.tokens:,} tokens"
        if case.seconds is None:
            rows.append([what, "over the limit", "–", "–", case.words])
            continue
        grown = case.peak - case.start
        rows.append(
            [what, f"{grown / 2**30:.2f} GiB", f"{grown / case.samples / 1000:.1f} KB", f"{case.seconds:.2f} s", "–"]
        )
    for tokens in dict.fromkeys(case.tokens for case in cases):
        fit = [case for case in cases if case.tokens == tokens and case.seconds is not None]
        if len(fit) < 2:
            continue
        least, most = fit[0], fit[-1]
        by = math.log(most.samples / least.samples)
        memory = math.log((most.peak - most.start) / (least.peak - least.start)) / by
        assert most.seconds is not None and least.seconds is not None
        seconds = math.log(most.seconds / least.seconds) / by
        each = (most.peak - least.peak) / (most.samples - least.samples)
        rows.append(
            [f"growth at {tokens:,} tokens: {2**30 / each:,.0f} samples a GiB", f"exponent {memory:.2f}",
             f"{each / 1000:.1f} KB", f"exponent {seconds:.2f}",
             f"goal ≤ {EXPONENT_GOAL}: {'yes' if max(memory, seconds) <= EXPONENT_GOAL else 'no'}"]
        )  # fmt: skip
    return markdown(("what", "memory", "a sample", "a step", "how it ends"), rows)


def peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def limited(samples: int, tokens: int) -> None:
    """The program, as a command of ``openrlhf`` ends. Lines of JSON on stdout."""
    from openrlhf.cli.run_command import run_command
    from openrlhf.config.commands import PPOConfig
    from openrlhf.training import ppo  # noqa: F401 — counts for the start

    def measure(config: PPOConfig) -> None:
        print(json.dumps({"start": peak()}), flush=True)
        seconds = run(samples, 1, tokens)
        print(json.dumps({"seconds": seconds, "peak": peak()}), flush=True)

    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    run_command(measure, settings(samples))


if __name__ == "__main__":
    limited(*map(int, sys.argv[1:]))
