"""What is compared with what, and the goals."""

from __future__ import annotations

from pathlib import Path

from benchmarks import pairs
from benchmarks.material import BATCH, VOCABULARY, fill, token_rows, write_model, write_reward_model
from benchmarks.rounds import WARM_UP_STEPS, Program, Usage, check_agreement, run_rounds
from benchmarks.table import Row, cpu_row, memory_row

LOOP_GOAL, TRL_GOAL, RAGGED_GOAL, GRPO_GOAL = 1.15, 0.80, 0.50, 0.80
HEAD_TIME_GOAL, HEAD_MEMORY_GOAL, PREFIX_GOAL = 1.05, 0.40, 0.62


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


def dpo(model: Path, rounds: int) -> list[Row]:
    return _preference("DPO", "dpo", _with_end(model), rounds)


def kto(model: Path, rounds: int) -> list[Row]:
    return _preference("KTO", "kto", _with_end(model), rounds)


def rm(model: Path, rounds: int) -> list[Row]:
    return _preference("RM", "reward_model", _scorer(_with_end(model)), rounds)


def head_128(model: Path, rounds: int) -> list[Row]:
    return _head(128, rounds)


def head_256(model: Path, rounds: int) -> list[Row]:
    return _head(256, rounds)


def head_1024(model: Path, rounds: int) -> list[Row]:
    return _head(1024, min(rounds, 3))  # a step takes 10 s


def prefixes(model: Path, rounds: int) -> list[Row]:
    options = {"model": str(model)}
    programs = [
        Program("ours", "benchmarks.prefixes:ours", options),
        Program("whole rows", "benchmarks.prefixes:whole", options),
    ]
    usages = _agreeing(programs, rounds, steps=2)
    what = "update on 2 groups of 8 samples, prompt and answers of 128 tokens each, packed"
    return [cpu_row(what, usages, "whole rows", PREFIX_GOAL), memory_row(what, usages, "whole rows", 1.0)]


def grpo(model: Path, rounds: int) -> list[Row]:
    return _grpo(model, 0.0, rounds)


def grpo_kl(model: Path, rounds: int) -> list[Row]:
    return _grpo(model, 0.04, rounds)


def ppo(model: Path, rounds: int) -> list[Row]:
    options = {"model": str(model), "scorer": str(_scorer(model))}
    programs = [Program("ours", "benchmarks.ppo:ours", options), Program("phases", "benchmarks.ppo:phases", options)]
    usages = _agreeing(programs, rounds, steps=4)
    what = "PPO with critic, reference and reward model, 4 prompts × 8 samples × 64 tokens"
    return [cpu_row(what, usages, "phases", LOOP_GOAL), memory_row(what, usages, "phases", None)]


COMPARISONS = {
    comparison.__name__: comparison
    for comparison in (
        sft_uniform,
        sft_short,
        sft_long,
        dpo,
        kto,
        rm,
        head_128,
        head_256,
        head_1024,
        prefixes,
        grpo,
        grpo_kl,
        ppo,
    )
}


def _sft(model: Path, lengths: str, packed: bool, rounds: int) -> dict[str, Usage]:
    programs = _programs("sft", {"model": str(model), "lengths": lengths}, packed)
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


def _preference(name: str, module: str, model: Path, rounds: int) -> list[Row]:
    """A method that learns from two answers to a prompt: answers of one length, then ragged ones with ours packed."""
    steps = 2
    options = {"model": str(model), "lengths": "answers"}
    even = _agreeing(_programs(module, options, packed=True), rounds, steps)
    what = f"{name}, {pairs.PAIRS} examples, prompts of {pairs.PROMPT} and answers of 128 tokens, ours packed"
    rows = [
        cpu_row(what, even, "loop", LOOP_GOAL),
        cpu_row(what, even, "TRL", TRL_GOAL),
        memory_row(what, even, "loop", 1.0),
        memory_row(what, even, "TRL", 1.0),
    ]
    real = pairs.fill("long", pairs.PAIRS * (WARM_UP_STEPS + steps * rounds))
    ragged = _agreeing(_programs(module, {**options, "lengths": "long"}, packed=True), rounds, steps)
    what = f"{name}, lognormal answers, σ 1, {real:.0%} of the padded batches real, ours packed"
    return [
        *rows,
        cpu_row(what, ragged, "TRL", RAGGED_GOAL),
        cpu_row(what, ragged, "loop", LOOP_GOAL),
        memory_row(what, ragged, "TRL", 1.0),
    ]


def _programs(module: str, options: dict[str, str], packed: bool) -> list[Program]:
    return [
        Program("ours", f"benchmarks.{module}:ours", {**options, "packed": packed}),
        Program("loop", f"benchmarks.{module}:loop", options),
        Program("TRL", f"benchmarks.{module}:trl", options),
    ]


def _scorer(model: Path) -> Path:
    folder = model / "reward"
    if not folder.exists():
        write_reward_model(model, folder)
    return folder


def _with_end(model: Path) -> Path:
    """A folder in which the end token is one of the model's own: TRL puts it behind every answer."""
    folder = model / "with_end"
    if not folder.exists():
        write_model(folder, vocabulary=VOCABULARY + 8)
    return folder


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
