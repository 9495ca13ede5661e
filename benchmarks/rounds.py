"""Runs programs in turns, A B A B …, each in a process of its own, and hands back what they used."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
from typing import Any

WARM_UP_STEPS = 2
DEADLINE_S = 180.0

# One thread that sleeps when it waits: CPU seconds then mean work, however busy the machine is.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "CUDA_VISIBLE_DEVICES": "",
}


@dataclass(frozen=True)
class Program:
    """``target`` is MODULE:FUNCTION, a function of a ``Gate`` and the options."""

    name: str
    target: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Usage:
    """What a program used. Warm-up steps count for ``figures`` and ``peak``, not for times."""

    cpu: list[float] = field(default_factory=list)  # CPU seconds a step, one entry a round
    wall: list[float] = field(default_factory=list)
    start: int = 0  # bytes before the first step: imports, model, data
    peak: int = 0  # bytes
    figures: dict[str, list[float]] = field(default_factory=dict)  # one entry a step


class Runner:
    """A program's process."""

    def __init__(self, program: Program, total: int) -> None:
        self.name = program.name
        self.errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 — closed with the process
        command = [sys.executable, "-m", "benchmarks.worker", program.target, str(total), json.dumps(program.options)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            bufsize=1,
            env={**os.environ, **ENVIRONMENT},
        )

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(timeout=DEADLINE_S)
        self.errors.close()

    def ask(self, steps: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next report. Raises RuntimeError with the end of the program's output when none comes."""
        stdout = self.process.stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], DEADLINE_S)
        line = stdout.readline() if ready else ""
        if not line:
            self.errors.seek(0)
            why = "ended" if ready else f"did not answer within {DEADLINE_S:.0f} s"
            raise RuntimeError(f"{self.name} {why}; the end of its output:\n{self.errors.read()[-3000:]}")
        return json.loads(line)


def run_rounds(programs: Sequence[Program], rounds: int, steps: int) -> dict[str, Usage]:
    """``rounds`` rounds of ``steps`` steps of each program in turn, after the warm-up steps."""
    total = WARM_UP_STEPS + rounds * steps
    usages = {program.name: Usage() for program in programs}
    with ExitStack() as stack:
        runners = [stack.enter_context(Runner(program, total)) for program in programs]
        for runner in runners:
            usages[runner.name].start = runner.answer()["peak"]
        for count in [WARM_UP_STEPS] + [steps] * rounds:
            for runner in runners:
                add(usages[runner.name], runner.ask(count), count)
    for usage in usages.values():
        del usage.cpu[0], usage.wall[0]
    return usages


def add(usage: Usage, answer: Mapping[str, Any], steps: int) -> None:
    usage.cpu.append(answer["cpu"] / steps)
    usage.wall.append(answer["wall"] / steps)
    usage.peak = answer["peak"]
    for name, values in answer["figures"].items():
        usage.figures.setdefault(name, []).extend(values)


def check_agreement(usages: Mapping[str, Usage], tolerance: float = 1e-5) -> tuple[float, list[str]]:
    """The largest relative difference between the first program and another, step by step, in the figures that all
    recorded; and the names of those figures.

    Raises RuntimeError where it exceeds ``tolerance`` or nothing can be compared: a faster program that does something
    else is no result.
    """
    names = sorted(set.intersection(*(set(usage.figures) for usage in usages.values())))
    if not names:
        raise RuntimeError(f"{' and '.join(usages)} recorded no figure in common")
    (first, reference), *others = usages.items()
    largest = 0.0
    for (program, usage), name in product(others, names):
        a, b = reference.figures[name], usage.figures[name]
        differences = [abs(x - y) / max(abs(x), abs(y), 1e-30) for x, y in zip(a, b, strict=True)]
        if not all(difference <= tolerance for difference in differences):  # so written, NaN disagrees
            raise RuntimeError(f"{first} and {program} disagree in {name}: {a} and {b}")
        largest = max(largest, *differences)
    return largest, names
