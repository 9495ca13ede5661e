"""What is compared with what, and the goals."""

from __future__ import annotations

from pathlib import Path

from benchmarks.material import BATCH, fill, token_rows
from benchmarks.rounds import WARM_UP_STEPS, Program, Usage, check_agreement, run_rounds
from benchmarks.table import Row, cpu_row, memory_row

LOOP_GOAL, TRL_GOAL, RAGGED_GOAL, HEAD_TIME_GOAL, HEAD_MEMORY_GOAL, GRPO_GOAL = 1.15, 0.80, 0.50, 1.05, 0.40, 0.80


def sft_uniform(model: Path, rounds: int) -> list[Row]:
    what = f"SFT, {BATCH} × 256 tokens"
    usages = _sft(model, "uniform", packed=False, rounds=rounds)
    return [
        cpu_row(what, usages, "loop", LOOP_GOAL),
        cpu_row(what, usages, "TRL", TRL_GOAL),
        memory_row(what, usages, "loop", None),
        memory_row(what, usages, "TRL", None),
    ]


def sft_short(model: Path, rounds: int) -> list[Row]:
    return _sft_ragged(model, "short", "lognormal lengths, σ 0.4", rounds)


def sft_long(model: Path, rounds: int) -> list[Row]:
    return _sft_ragged(model, "long", "lognormal lengths, σ 1", rounds)


def head_128(model: Path, rounds: int) -> list[Row]:
    return _head(128, rounds)


def head_256(model: Path, rounds: int) -> list[Row]:
    return _head(256, rounds)


def head_1024(model: Path, rounds: int) -> list[Row]:
    return _head(1024, min(rounds, 3))  # a step takes 10 s


def grpo(model: Path, rounds: int) -> list[Row]:
    return _grpo(model, 0.0, rounds)


def grpo_kl(model: Path, rounds: int) -> list[Row]:
    return _grpo(model, 0.04, rounds)


COMPARISONS = {
    comparison.__name__: comparison
    for comparison in (sft_uniform, sft_short, sft_long, head_128, head_256, head_1024, grpo, grpo_kl)
}


def _sft(model: Path, lengths: str, packed: bool, rounds: int) -> dict[str, Usage]:
    options = {"model": str(model), "lengths": lengths}
    programs = [
        Program("ours", "benchmarks.sft:ours", {**options, "packed": packed}),
        Program("loop", "benchmarks.sft:loop", options),
        Program("TRL", "benchmarks.sft:trl", options),
    ]
    return _agreeing(programs, rounds, steps=4)


def _sft_ragged(model: Path, lengths: str, words: str, rounds: int) -> list[Row]:
    real = fill(token_rows(lengths, BATCH * (WARM_UP_STEPS + 4 * rounds)))
    what = f"SFT, {words}, {real:.0%} of the padded batches real, ours packed"
    usages = _sft(model, lengths, packed=True, rounds=rounds)
    return [
        cpu_row(what, usages, "TRL", RAGGED_GOAL),
        cpu_row(what, usages, "loop", LOOP_GOAL),
        memory_row(what, usages, "TRL", None),
    ]


def _head(hidden: int, rounds: int) -> list[Row]:
    options = {"vocabulary": 32768, "tokens": 4096, "hidden": hidden}
    programs = [
        Program("ours", "benchmarks.head:ours", options),
        Program("full logits", "benchmarks.head:full", options),
    ]
    usages = _agreeing(programs, rounds, steps=1)
    what = f"head, 4,096 tokens, vocabulary 32,768, hidden {hidden:,}"
    return [
        memory_row(what, usages, "full logits", HEAD_MEMORY_GOAL),
        cpu_row(what, usages, "full logits", HEAD_TIME_GOAL),
    ]


def _grpo(model: Path, beta: float, rounds: int) -> list[Row]:
    options = {"model": str(model), "beta": beta}
    programs = [Program("ours", "benchmarks.grpo:ours", options), Program("TRL", "benchmarks.grpo:trl", options)]
    usages = _agreeing(programs, rounds, steps=4)
    what = f"GRPO, 4 prompts × 8 samples × 64 tokens, β = {beta:g}"
    return [cpu_row(what, usages, "TRL", GRPO_GOAL), memory_row(what, usages, "TRL", None)]


def _agreeing(programs: list[Program], rounds: int, steps: int) -> dict[str, Usage]:
    usages = run_rounds(programs, rounds, steps)
    largest, figures = check_agreement(usages)
    print(f"  {' and '.join(usages)} agree in {', '.join(figures)} to {largest:.0e}", flush=True)
    return usages
