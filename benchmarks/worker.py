"""One program of a comparison: ``python -m benchmarks.worker MODULE:FUNCTION STEPS [OPTIONS as JSON]``."""

from __future__ import annotations

import importlib
import json
import os
import sys

from benchmarks.gate import Gate


def main(target: str, total: str, options: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not land among the answers
    import torch

    torch.set_num_threads(1)
    module, function = target.split(":")
    vars(importlib.import_module(module))[function](Gate(sys.stdin, answers, int(total)), **json.loads(options))


if __name__ == "__main__":
    main(*sys.argv[1:])
