"""What the figures were measured on and with."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "transformers", "trl")


def describe(packages: Sequence[str] = PACKAGES) -> str:
    """Date, CPU, cores, versions: one line, without names of hosts or folders."""
    versions = [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]
    return ", ".join([time.strftime("%Y-%m-%d"), cpu_model(), f"{os.cpu_count()} cores", *versions])


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
