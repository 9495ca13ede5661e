"""Runs of ``openrlhf sft`` one after another in the same processes, which ``torchrun`` starts once for all of them."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from openrlhf.cli.train_sft import main
from openrlhf.training.log import RunLog
from tests.recipes.helpers import words


class Died(BaseException):
    """In place of SIGKILL: nothing of ours is run after it."""


def run_in_turn(runs: list[dict[str, Any]]) -> None:
    """``{"flags": …, "dies": step or null, "stops": step}``: dies after the line of that step, on every rank, or the
    last rank alone gets a SIGTERM there."""
    original = RunLog.step
    for run in runs:

        def step(self: RunLog, number: int, values: dict[str, float], run: dict[str, Any] = run) -> None:
            original(self, number, values)
            if number == run["dies"]:
                raise Died
            if number == run.get("stops") and os.environ["RANK"] == "1":
                signal.raise_signal(signal.SIGTERM)

        RunLog.step = step  # type: ignore[method-assign]
        # The next process knows nothing of this one's random numbers.
        torch.manual_seed(1234)
        random.seed(1234)
        try:
            main(words(run["flags"]))
        except Died:
            assert run["dies"]
        else:
            assert not run["dies"]


if __name__ == "__main__":
    run_in_turn(json.loads(Path(sys.argv[1]).read_text()))
