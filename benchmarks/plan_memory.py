"""Peak memory of real runs in one process on the CPU, beside what ``openrlhf plan`` takes them to need.

    python -m benchmarks.plan_memory

prints the table of docs/plan.md. Each run is a process of its own, and is made twice. Held is how far its resident
memory rises from before the model is loaded to its highest, less what the same command takes for a model of almost
nothing (libraries that are loaded on the way), where the C library gives every freed block back at once: then resident
is what tensors take. As it comes, glibc keeps blocks of up to 32 MB that were freed, and new ones do not always fit
into them: the last column says what the process holds then.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROWS, LENGTH = 8, 512
NOTHING = "almost nothing"
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    NOTHING: ({"hidden": 64, "layers": 1}, {"micro_train_batch_size": 1}),
    "SFT, 19M, 4 × 512 tokens": ({"hidden": 384, "layers": 8}, {"micro_train_batch_size": 4}),
    "the same, --gradient_checkpointing": (
        {"hidden": 384, "layers": 8}, {"micro_train_batch_size": 4, "gradient_checkpointing": True},
    ),
    "SFT, 50M, 1 × 512 tokens": ({"hidden": 640, "layers": 8}, {"micro_train_batch_size": 1}),
    "the same, --lora_rank 8": ({"hidden": 640, "layers": 8}, {"micro_train_batch_size": 1, "lora_rank": 8}),
}  # fmt: skip


# From this size on glibc takes a block from the system for itself, and gives it back when it is freed.
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def main() -> None:
    print("| run | predicted MB | held MB | predicted ÷ held | the process MB |\n|---|---|---|---|---|")
    libraries = [of(NOTHING, allocator)["measured"] for allocator in (GIVEN_BACK, {})]
    for name in RUNS:
        if name == NOTHING:
            continue
        tidy, usual = of(name, GIVEN_BACK), of(name, {})
        held, process = (run["measured"] - own for run, own in zip((tidy, usual), libraries, strict=True))
        ratio = tidy["predicted"] / held
        print(
            f"| {name} | {tidy['predicted'] / 1e6:.0f} | {held / 1e6:.0f} | {ratio:.2f} | {process / 1e6:.0f} |",
            flush=True,
        )


def of(name: str, allocator: dict[str, str]) -> dict[str, float]:
    line = [sys.executable, "-m", "benchmarks.plan_memory", name]
    done = subprocess.run(
        line, capture_output=True, text=True, timeout=1200, check=True, env={**os.environ, **allocator}
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(name: str) -> None:
    """One run; the last line says bytes as JSON."""
    from openrlhf.cli import supervised, train_sft
    from openrlhf.config.commands import SFTConfig
    from openrlhf.config.parse import read
    from openrlhf.models.tiny import build_model, build_tokenizer
    from openrlhf.plan.estimate import Shapes, supervised_parts
    from openrlhf.plan.memory import total
    from openrlhf.plan.shape import find_shape

    sizes, flags = RUNS[name]
    with tempfile.TemporaryDirectory() as folder:
        base, rows = Path(folder) / "base", Path(folder) / "rows.jsonl"
        tokenizer = build_tokenizer(base)
        heads = sizes["hidden"] // 64
        model = build_model(base, len(tokenizer), **sizes, heads=heads, kv_heads=heads, head_dim=64)
        del model
        rows.write_text("".join(json.dumps({"text": "x" * LENGTH}) + "\n" for _ in range(ROWS)))
        line = [f"--{k}={v}" for k, v in {**flags, "train_batch_size": 4, "max_epochs": 1, "max_len": LENGTH}.items()]
        line += ["--pretrain", str(base), "--dataset", str(rows), "--input_key", "text", "--pretrain_mode"]
        config = read(SFTConfig, [*line, "--save_path", str(Path(folder) / "out")])
        shapes = Shapes(find_shape(str(base), "--model", config.model))
        predicted = total(supervised_parts(config, shapes, 1, LENGTH, "cpu"))
        before: list[int] = []
        started = supervised.train_engine

        def noted(*args: Any, **more: Any) -> Any:
            before.append(_resident())
            return started(*args, **more)

        peaks: list[int] = []
        trained = supervised.train

        def trained_and_noted(*args: Any, **more: Any) -> None:
            trained(*args, **more)
            peaks.append(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

        supervised.train_engine = noted  # what the command imports when it runs
        supervised.train = trained_and_noted  # type: ignore[assignment]
        _forget_peak()
        train_sft.run(config)
    print(json.dumps({"predicted": predicted, "measured": peaks[0] - before[0]}))


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _forget_peak() -> None:
    """The model that was made for the run is gone; its memory is not to count."""
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()
