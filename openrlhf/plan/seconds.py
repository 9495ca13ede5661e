"""Seconds of the phases of a step: arithmetic against bandwidth (Williams et al. 2009, the roofline model).

A sampled token reads every weight and the attention cache of every text that is being written once (Pope et al. 2022,
arXiv:2211.05102). Stage 3 of ZeRO sends the weights three times a micro-batch (arXiv:1910.02054, section 7.2): that
hides behind the arithmetic where a device has enough tokens at a time, whatever the model's size.
"""

from __future__ import annotations

import math

from openrlhf.plan.cluster import Cluster
from openrlhf.plan.memory import engine_weights
from openrlhf.plan.shape import Shape

# Shares of the data sheet's figures that runs reach: of the arithmetic in training and forward, of the bandwidth in
# decoding. The first two are what published runs of 8B and above report; the third makes 70B on TP 8 agree with them.
TRAIN, FORWARD, DECODE = 0.40, 0.45, 0.60
HOST_STEP = 0.004  # seconds that an engine's scheduler needs for a step, however small the model
ALL_REDUCE = 15e-6  # seconds for the small sums of tensor parallelism, two in a layer
HOST_LINK = 25e9  # bytes per second between a device and its host's memory


def decode_step(shape: Shape, width: int, texts: float, context: float, bandwidth: float) -> float:
    """Seconds for one token of each of ``texts``, ``context`` tokens long, on ``width`` devices of ``bandwidth``."""
    return (engine_weights(shape, 1) + texts * context * shape.kv_bytes) / (width * bandwidth)


def generate(
    shape: Shape, cluster: Cluster, width: int, texts: float, slots: int, prompt: int, response: int
) -> tuple[float, bool]:
    """Of ``texts`` responses by one engine, and whether its scheduler, not its memory, is what limits it.

    ``slots`` are written at a time. All are as long as they may be, so nothing waits for a straggler.
    """
    waves, together = math.ceil(texts / slots), min(texts, slots)
    reading = decode_step(shape, width, together, prompt + response / 2, DECODE * cluster.gpu.bandwidth)
    working = together * 2 * shape.parameters / (width * FORWARD * cluster.gpu.flops)
    floor = max(reading, working) + (2 * shape.layers * ALL_REDUCE if width > 1 else 0.0)
    return waves * response * max(floor, HOST_STEP), floor < HOST_STEP


def forward(shape: Shape, cluster: Cluster, devices: int, tokens: float, length: float) -> float:
    return tokens * shape.forward_flops(length) / (devices * FORWARD * cluster.gpu.flops)


def train(shape: Shape, cluster: Cluster, devices: int, tokens: float, length: float) -> float:
    """The weights that do not learn are passed through, and get no gradient of their own."""
    frozen = 0.0 if shape.learns == shape.parameters else 1 / 3
    return (1 - frozen) * tokens * shape.train_flops(length) / (devices * TRAIN * cluster.gpu.flops)


def gathering(shape: Shape, cluster: Cluster, devices: int, micro_batches: float) -> float:
    """What stage 3 sends in an update of ``micro_batches`` on each device: three times the weights for each."""
    return micro_batches * 3 * 2 * shape.parameters / link(cluster, devices)


def break_even(cluster: Cluster, devices: int) -> float:
    """Tokens on a device at a time above which the sending of stage 3 hides behind its arithmetic."""
    return TRAIN * cluster.gpu.flops / link(cluster, devices)


def link(cluster: Cluster, devices: int) -> float:
    """Bytes per second and device among ``devices``: within a machine, or between machines."""
    return cluster.gpu.link if devices <= cluster.per_node else cluster.network


def to_host_and_back(size: float) -> float:
    return 2 * size / HOST_LINK
