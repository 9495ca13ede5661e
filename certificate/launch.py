"""Two processes that run a module of the certificate, and the rows that they leave."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from certificate.table import Row

DEADLINE_S = 1800.0  # minutes on a machine of one's own


def on_two_ranks(module: str, models: Path, out: Path) -> list[Row]:
    """What ``torchrun -m module models out`` writes. Raises RuntimeError with the end of its output when it fails."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("--master-addr", "127.0.0.1", "--master-port", str(free_port())),
        *("-m", module, str(models), str(out)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    try:
        done = subprocess.run(
            command, env=environment, timeout=DEADLINE_S, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{module} took over {DEADLINE_S:.0f} s on two ranks") from None
    if done.returncode != 0:
        raise RuntimeError(f"{module} ended with {done.returncode}; the end of its output:\n{done.stdout[-3000:]}")
    return [Row(**row) for row in json.loads(out.read_text())]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
