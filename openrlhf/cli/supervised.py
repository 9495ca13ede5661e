"""What the supervised commands have in common: read, choose the engine, train, log, save."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from openrlhf.backends.choose import check_alone, choose_train_engine
from openrlhf.check.disk import check_disk
from openrlhf.check.packages import check_packages
from openrlhf.cli.process import check_folders, prepare_process
from openrlhf.config.commands import DPOConfig, KDConfig, KTOConfig, PRMConfig, RMConfig, SFTConfig
from openrlhf.config.identity import decisive
from openrlhf.config.parse import flat, write_yaml
from openrlhf.data.fingerprint import fingerprint_samples
from openrlhf.data.load import load_rows
from openrlhf.data.preview import print_lengths, print_samples, terminal
from openrlhf.data.reader import Reader
from openrlhf.models.causal_lm import CausalLM
from openrlhf.models.value_head import ScoreModel
from openrlhf.models.vocabulary import load_policy_tokenizer
from openrlhf.training.checkpoint_part import EnginePart, EngineTeam, save_part
from openrlhf.training.checkpoints import Checkpoints, model_not_saved
from openrlhf.training.fit import Task, fit, total_steps
from openrlhf.training.log import RunLog
from openrlhf.training.micro_batches import train_size
from openrlhf.training.pulse import Pulse
from openrlhf.training.roles import TrainEngine
from openrlhf.training.signals import stop_requests
from openrlhf.types import Sample

Supervised = SFTConfig | RMConfig | DPOConfig | KTOConfig | KDConfig | PRMConfig


class Source(Protocol):
    """The part of every data group that says where the rows are."""

    @property
    def dataset(self) -> str: ...

    @property
    def dataset_probs(self) -> str | None: ...

    @property
    def dataset_split(self) -> str: ...


def is_first() -> bool:
    """Whether this process writes and speaks. The launchers set RANK; a process alone is the first."""
    return os.environ.get("RANK", "0") == "0"


def start(config: Supervised) -> Any:
    """What a command does before it reads rows or loads a model: seeds, and the cheap part of `openrlhf check`.

    Returns the tokenizer of ``--pretrain``. A preview writes nothing. Raises ValueError naming the flag of a folder
    that cannot be written or has no room for the run, and ImportError for a package that is missing.
    """
    prepare_process(config.train)
    writes = is_first() and not config.data.preview
    if not config.data.preview:
        launched = "WORLD_SIZE" in os.environ
        if not launched:
            check_alone(config.model, config.deepspeed)
        check_packages(config, launched)
    if writes:
        check_folders(config.checkpoint)
    tokenizer = load_policy_tokenizer(config.model)
    if writes:
        check_disk(config)
    return tokenizer


def read(config: Supervised, source: Source, reader: Reader) -> tuple[list[Sample], list[Sample]]:
    """Training and evaluation samples; the latter are none without ``--eval_dataset``. Says what was dropped."""
    data = config.data

    def one(names: str, split: str, probs: str | None, flag: str) -> list[Sample]:
        rows = load_rows(names, split, probs, data.max_samples, config.train.seed, flag, config.model.use_ms)
        samples, report = reader.encode(rows, flag)
        if is_first() and (report.dropped or report.shortened or data.preview):
            print(f"{flag}: {report.line()}")
        return samples

    training = one(source.dataset, source.dataset_split, source.dataset_probs, "--dataset")
    return training, one(data.eval_dataset, data.eval_split, None, "--eval_dataset") if data.eval_dataset else []


def preview(config: Supervised, tokenizer: Any, samples: Sequence[Sample], reader: Reader) -> None:
    """Print the first ``--preview`` examples of ``samples``, and how long all of them are; see ``print_samples``."""
    if is_first():
        console = terminal()
        shown = samples[: config.data.preview * len(reader.titles)]
        print_samples(console, tokenizer, shown, reader.titles, reader.note)
        print_lengths(console, samples, reader.limit_flag, reader.limit)


def train_engine(config: Supervised, build: Callable[[], CausalLM | ScoreModel], examples: int) -> TrainEngine:
    """The backend that this process was started for, with a schedule for ``examples``."""
    return choose_train_engine(
        build,
        config.model,
        config.optim,
        config.train,
        config.deepspeed,
        config.fit.learning_rate,
        total_steps(examples, config.train),
    )


def train(
    config: Supervised,
    title: str,
    engine: TrainEngine,
    task: Task,
    samples: Sequence[Sample],
    evaluation: Sequence[Sample],
    tokenizer: Any,
) -> Pulse:
    """``fit`` with a log in ``--save_path`` and checkpoints in ``--ckpt_path``. What it returns watches the processes
    until ``save`` has ended."""
    folder, kept = Path(config.checkpoint.save_path), config.checkpoint
    steps = total_steps(len(samples) // task.rows, config.train)
    with stop_requests(kept.save_steps > 0 and not kept.disable_ds_ckpt) as stop:
        made_by = {**decisive(config), "the rows of --dataset": fingerprint_samples(samples)}
        parts, weights = {"": EnginePart(engine, tokenizer)}, {"": "_hf"}
        checkpoints = Checkpoints(kept, made_by, parts, weights, EngineTeam(engine), stop, config.deepspeed.deadline)
        if is_first():
            write_yaml(config, folder / "run_config.yaml")  # not of a run that was refused
        log = RunLog(folder, config.log, flat(config), writes=is_first(), done=checkpoints.start.step)
        log.start(steps, title)
        pulse, pad = Pulse(folder / "stacks", config.deepspeed.deadline), tokenizer.pad_token_id

        def enter(phase: str, after: int) -> None:
            pulse.enter(phase, after)
            log.enter(phase)

        try:
            fit(
                engine, task, samples, evaluation, config.train, config.log, log, pad,
                train_size(config.train, config.model, task.rows), checkpoints, enter,
            )  # fmt: skip
            pulse.enter("the last save", steps)
        except BaseException:
            pulse.close()
            raise
        finally:
            log.close()
    return pulse


def save(config: Supervised, engine: TrainEngine, tokenizer: Any, pulse: Pulse) -> None:
    """The model as a Hugging Face folder at ``--save_path``. Raises ValueError when the disk does not take it."""
    kept = config.checkpoint
    try:
        failure = save_part(engine, tokenizer, None, Path(kept.save_path))
        lost = engine.anywhere(failure is not None)
    finally:
        pulse.close()
    if lost:
        raise model_not_saved(kept, failure or "another process could not write")
    if is_first():
        print(f"saved the model to {config.checkpoint.save_path}")
