"""Statements about whole runs: stopped and gone on, placed elsewhere, ahead of themselves by nothing."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from certificate.learning import ONE_EACH, configuration, started, with_estimator
from certificate.table import Row
from openrlhf.cli import train_dpo, train_kd, train_kto, train_ppo_ray, train_prm, train_rm, train_sft
from openrlhf.models.tiny import build_model, build_tokenizer
from openrlhf.training.log import RunLog

Flags = Mapping[str, Any]
STEPS = 6
ESTIMATORS = ("gae", "group_norm")
REWARD_FILE = Path(__file__).with_name("alphanumeric.py")

# Seven examples in mini-batches of four for three epochs: the second of an epoch is smaller.
ANSWERS = [{"q": f"{i}", "a": f"word {i} " * (1 + i % 3)} for i in range(7)]
PAIRS = [{"chosen": f"{i} yes" + " sir" * (i % 3), "rejected": f"{i} no" + " way" * (i % 4)} for i in range(7)]
LABELLED = [{"q": f"{i}?", "a": "yes" if i % 2 else "no", "label": i % 2} for i in range(7)]
SOLUTIONS = [{"input": f"{i}#a#", "label": ["+-"[i % 2], "+"]} for i in range(7)]
PROMPTS = [{"input": f"say {i}:"} for i in range(4)]
TEXT = {"input_key": "q", "output_key": "a", "input_template": "{}="}

COMMANDS: dict[str, tuple[Callable[[list[str]], None], list[dict[str, Any]], Flags]] = {
    "sft": (train_sft.main, ANSWERS, TEXT),
    "rm": (train_rm.main, PAIRS, {}),
    "dpo": (train_dpo.main, PAIRS, {}),
    "kto": (train_kto.main, LABELLED, TEXT),
    "kd": (train_kd.main, ANSWERS, TEXT),
    "prm": (train_prm.main, SOLUTIONS, {"placeholder_token": "#"}),
    "ppo, critic": (train_ppo_ray.main, PROMPTS, {"advantage_estimator": "gae"}),
    "ppo, groups": (train_ppo_ray.main, PROMPTS, {"advantage_estimator": "group_norm", "max_epochs": 2}),
}


def resumed(command: str, folder: Path, steps: Sequence[int]) -> float:
    """How far a run that a signal stops after one of these ``steps``, and that goes on, ends from one never stopped."""
    main, flags = prepared(command, folder)
    whole = run(main, flags, folder / "whole")
    errors = []
    for step in steps:
        out = folder / f"stopped{step}"
        saves = {"save_steps": 1000, "ckpt_path": folder / f"steps{step}"}
        with_signal_after(step, partial(run, main, {**flags, **saves}, out))
        run(main, {**flags, **saves, "load_checkpoint": True}, out)
        errors.append(difference(out, whole))
    return max(errors)


def resumed_rows(folder: Path) -> Iterator[Row]:
    text = "stopped after any step and gone on = never stopped"
    for number, name in enumerate(COMMANDS):
        yield Row("I10", text, name, None, resumed(name, folder / f"resumed{number}", range(1, STEPS)), 0.0)


def ahead_by_nothing(command: str, folder: Path) -> float:
    """How far a run with rollouts asked for ahead, 0 of them, ends from one without."""
    main, flags = prepared(command, folder)
    plain = run(main, flags, folder / "plain")
    return difference(run(main, {**flags, "async_train": True, "async_queue_size": 0}, folder / "ahead"), plain)


PLACED = "on shared devices, and with rollouts asked for ahead, 0 of them = each role on devices of its own, in turn"


def placed_rows(folder: Path) -> Iterator[Row]:
    """On Ray, vLLM and DeepSpeed."""
    with started(configuration(f"{ONE_EACH} --zero_stage 2", folder / "separate")) as apart:
        ahead = replace(apart.config.rollout, async_train=True, async_queue_size=0)
        for estimator in ESTIMATORS:
            apart.train(with_estimator(apart.config, estimator), folder / f"separate {estimator}")
            own = replace(with_estimator(apart.config, estimator), rollout=ahead)
            apart.train(own, folder / f"ahead {estimator}")
    sleeping = "--colocate_all_models --vllm_enable_sleep --deepspeed_enable_sleep"
    with started(configuration(f"{ONE_EACH} --zero_stage 2 {sleeping}", folder / "shared")) as shared:
        for estimator in ESTIMATORS:
            shared.train(with_estimator(shared.config, estimator), folder / f"shared {estimator}")
    for estimator in ESTIMATORS:
        expected = folder / f"separate {estimator}"
        errors = [difference(folder / f"{way} {estimator}", expected) for way in ("ahead", "shared")]
        yield Row("I9", PLACED, f"ppo, {estimator}", None, max(errors), 0.0)


def prepared(command: str, folder: Path, dropout: float = 0.2) -> tuple[Callable[[list[str]], None], dict[str, Any]]:
    """A model, with dropout so that random numbers are drawn in every step, rows, and the flags of ``STEPS`` steps."""
    main, rows, own = COMMANDS[command]
    model, data = folder / "model", folder / "rows.jsonl"
    build_model(model, vocab_size=len(build_tokenizer(model)), hidden=32, heads=2, kv_heads=2)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "attention_dropout": dropout}))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {"pretrain": model, "train_batch_size": 4, "use_dynamic_batch": True, "train_max_tokens_per_gpu": 60}
    if command.startswith("ppo"):
        return main, {
            **common, "local": True, "prompt_data": data, "remote_rm_url": REWARD_FILE, "rollout_batch_size": 2,
            "n_samples_per_prompt": 4, "num_episodes": STEPS // 2, "generate_max_len": 6, "kl_target": 0.01,
            "actor_learning_rate": 1e-3, "critic_learning_rate": 1e-3, **own,
        }  # fmt: skip
    teacher = {"teacher_model": model} if command == "kd" else {}
    return main, {
        **common, "dataset": data, "max_len": 64, "max_epochs": STEPS // 2, "learning_rate": 1e-3, **teacher, **own
    }  # fmt: skip


def run(main: Callable[[list[str]], None], flags: Flags, out: Path) -> Path:
    words = []
    for name, value in {**flags, "save_path": out}.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    main(words)
    return out


def with_signal_after(step: int, run: Callable[[], object]) -> None:
    original = RunLog.step

    def logged(self: RunLog, number: int, metrics: dict[str, float]) -> None:
        original(self, number, metrics)
        if number == step:
            signal.raise_signal(signal.SIGTERM)

    RunLog.step = logged  # type: ignore[method-assign, assignment]
    try:
        run()
    finally:
        RunLog.step = original  # type: ignore[method-assign]


def difference(got: Path, expected: Path) -> float:
    """The largest of a weight that was saved, or of a number of the log but those of a clock; infinite for a log of
    other steps."""
    weights, same = load_file(got / "model.safetensors"), load_file(expected / "model.safetensors")
    apart = [float((weights[name] - same[name]).abs().max()) for name in same]
    lines, whole = log_of(got), log_of(expected)
    if [line["step"] for line in lines] != [line["step"] for line in whole]:
        return math.inf
    for line, other in zip(lines, whole, strict=True):
        apart += [abs(line[name] - other[name]) for name in line.keys() & other.keys()]
    return math.inf if any(map(math.isnan, apart)) else max(apart)


def log_of(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in line if not name.startswith(CLOCKED)} for line in lines]


CLOCKED = ("time/", "busy/", "step_seconds", "tokens_per_second")
