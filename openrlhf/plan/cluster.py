"""Machines and their GPUs: read from words such as 2x8xH100-80G, and the figures of their data sheets."""

from __future__ import annotations

import re
from dataclasses import dataclass

GIGABYTE = 10**9
SPELLING = "[NODESx]GPUSxNAME[-MEMORYG], as in 8xH100-80G or 2x8xH100-80G"


@dataclass(frozen=True)
class Accelerator:
    """One GPU. ``flops`` are dense bfloat16; ``bandwidth`` of its memory and ``link`` to its neighbours in the machine,
    one direction, are bytes per second. From the data sheets of NVIDIA and AMD."""

    name: str
    memory: float  # bytes
    flops: float
    bandwidth: float
    link: float


ACCELERATORS = {
    gpu.name: gpu
    for gpu in (
        Accelerator("B200", 180e9, 2250e12, 8.0e12, 900e9),
        Accelerator("H200", 141e9, 989e12, 4.8e12, 450e9),
        Accelerator("H100", 80e9, 989e12, 3.35e12, 450e9),
        Accelerator("H800", 80e9, 989e12, 3.35e12, 200e9),
        Accelerator("H20", 96e9, 148e12, 4.0e12, 450e9),
        Accelerator("MI300X", 192e9, 1307e12, 5.3e12, 448e9),
        Accelerator("A100", 80e9, 312e12, 2.0e12, 300e9),
        Accelerator("A800", 80e9, 312e12, 2.0e12, 200e9),
        Accelerator("L40S", 48e9, 362e12, 0.864e12, 32e9),
        Accelerator("A40", 48e9, 150e12, 0.696e12, 56e9),
        Accelerator("A10", 24e9, 125e12, 0.6e12, 32e9),
        Accelerator("L4", 24e9, 121e12, 0.3e12, 32e9),
        Accelerator("RTX4090", 24e9, 165e12, 1.0e12, 32e9),
        Accelerator("RTX3090", 24e9, 71e12, 0.936e12, 32e9),
        Accelerator("V100", 32e9, 125e12, 0.9e12, 150e9),
    )
}


@dataclass(frozen=True)
class Cluster:
    """``nodes`` machines of ``per_node`` GPUs. ``network`` is what one GPU sends to another machine, bytes per second:
    a 400 Gb/s card each, the usual one beside an H100."""

    nodes: int
    per_node: int
    gpu: Accelerator
    network: float = 50e9

    @property
    def gpus(self) -> int:
        return self.nodes * self.per_node

    def __str__(self) -> str:
        machines = f"{self.nodes}x" if self.nodes > 1 else ""
        return f"{machines}{self.per_node}x{self.gpu.name}-{self.gpu.memory / GIGABYTE:.0f}G"


def parse_cluster(text: str, flag: str) -> Cluster:
    """``2x8xH100-80G`` is two machines of eight. The memory may be left out where the name says it.

    Raises ValueError naming ``flag`` for another spelling or a GPU that is not known.
    """
    match = re.fullmatch(r"(?:(\d+)x)?(\d+)x([A-Za-z][A-Za-z0-9]*)(?:-(\d+)G?)?", text, flags=re.IGNORECASE)
    if match is None or "0" in (match[1], match[2], match[4]):
        raise ValueError(f"{flag} {text!r} is not a cluster: write {SPELLING}.")
    nodes, per_node, name, memory = match.groups()
    gpu = ACCELERATORS.get(name.upper())
    if gpu is None:
        raise ValueError(f"{flag} {text!r}: there is no GPU {name!r}; known are {', '.join(ACCELERATORS)}.")
    held = int(memory) * GIGABYTE if memory else gpu.memory
    return Cluster(int(nodes or 1), int(per_node), Accelerator(gpu.name, held, gpu.flops, gpu.bandwidth, gpu.link))
