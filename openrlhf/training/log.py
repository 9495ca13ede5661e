"""Where metrics go: always ``metrics.jsonl`` and a line on the screen; TensorBoard and W&B by flag."""

from __future__ import annotations

import json
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TextIO

from tqdm import tqdm

from openrlhf.config.groups import LogConfig
from openrlhf.training.busy import BusyClock
from openrlhf.training.metric_names import EVALUATED, PASS_RATE, unknown_names
from openrlhf.training.roles import PartLost
from openrlhf.types import Metrics

# What a person follows during a run; the rest is in metrics.jsonl.
SCREEN = (
    *("loss", "eval_loss", "accuracy", "eval_accuracy", "reward", "score", "kl", "entropy"),
    *("response_length", "truncated", "grad_norm", "tokens_per_second"),
)


class Sink(Protocol):
    name: str

    def write(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class RunLog:
    """The log of one run. Only the first rank writes; the others hold a log that stays silent."""

    def __init__(
        self, folder: Path, config: LogConfig, resolved: Mapping[str, Any], writes: bool = True, done: int = 0
    ) -> None:
        """``done`` steps of the run are in the log of an earlier process, which goes on after them."""
        self.done = done
        self.every = config.logging_steps
        self.folder = folder
        self.file: TextIO | None = None
        self.skips: TextIO | None = None
        self.sinks: list[Sink] = []
        self.bar: tqdm | None = None
        self.steps, self.began = 0, time.monotonic()
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = _lines(folder / "metrics.jsonl", done)
            self.sinks = _sinks(folder, config, resolved, done)

    def start(self, steps: int, title: str) -> None:
        """Show a progress bar over ``steps``, on a terminal; a log file gets the lines alone, with the time left."""
        self.steps, self.began = steps, time.monotonic()
        if self.file is not None:
            self.bar = tqdm(total=steps, initial=self.done, desc=title, unit="step", dynamic_ncols=True, disable=None)

    def enter(self, part: str) -> None:
        """Show behind the bar what a step is at, and since when: a part may take long."""
        if self.bar is not None:
            self.bar.set_postfix_str(f"{part} since {time.strftime('%H:%M:%S')}")

    def step(self, step: int, metrics: Metrics) -> None:
        """Record a step; step 0 is what was measured before the first.

        Raises ValueError for a name that the metric table does not have.
        """
        if strange := unknown_names(list(metrics)):
            raise ValueError(f"metrics {strange} are not in training/metric_names.py")
        if self.file is None:
            return
        if self.bar is not None:
            self.bar.update(step > 0)
        if step % self.every == 0 or any(name.startswith(EVALUATED) for name in metrics):
            self._write(self.file, {"step": step, **metrics})
            spent = time.monotonic() - self.began
            tqdm.write(screen_line(step, metrics) + time_left(step - self.done, self.steps - step, spent))
            for sink in self.sinks:
                self._spare(partial(sink.write, step, metrics), sink.name)

    def skipped(self, step: int, model: str, rows: Sequence[int]) -> None:
        """An optimizer step that was left out, and the rows of its mini-batch, into ``skipped.jsonl``."""
        if self.file is None:
            return
        if self.skips is None:
            self.skips = _lines(self.folder / "skipped.jsonl", self.done)
        self._write(self.skips, {"step": step, "model": model, "rows": list(rows)})
        tqdm.write(f"step {step}: SKIPPED an optimizer step of the {model}, its loss or gradient is not finite")

    def _write(self, file: TextIO, line: Mapping[str, Any]) -> None:
        self._spare(lambda: file.write(json.dumps(line) + "\n"), Path(file.name).name)

    def _spare(self, write: Callable[[], Any], name: str) -> None:
        """A disk that is full must not end the training."""
        try:
            write()
        except OSError as error:
            tqdm.write(f"{name} could not be written ({error.strerror}); training goes on")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        for file in (self.file, self.skips):
            if file is not None:
                with suppress(OSError):  # the last lines on a disk that is full
                    file.close()
        for sink in self.sinks:
            self._spare(sink.close, sink.name)


class Phases:
    """Wall seconds of the named parts of a step, ``time/<part>``, and of the work of other processes in each,
    ``busy/<part>``, where they report it."""

    def __init__(
        self, busy: BusyClock | None = None, after: int = 0, enter: Callable[[str], None] = lambda part: None
    ) -> None:
        """``after`` is the step that the run has finished; ``enter`` hears which part comes."""
        self.busy = busy or BusyClock()
        self.after = after
        self.enter = enter
        self.busy.take()  # work between two steps, as for a checkpoint, belongs to no phase
        self.began = time.monotonic()
        self.seconds: Metrics = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        self.enter(part)
        start = time.monotonic()
        try:
            yield
        except TimeoutError as late:
            raise TimeoutError(
                f"in the phase {part} after step {self.after}: {late}; --deadline says how long that may take"
            ) from late
        except PartLost as lost:
            raise PartLost(f"in the phase {part} after step {self.after}: {lost}") from lost
        self.seconds[f"time/{part}"] = time.monotonic() - start
        if (worked := self.busy.take()) is not None:
            self.seconds[f"busy/{part}"] = worked

    def metrics(self, tokens: int) -> Metrics:
        """The parts, the whole, and tokens per second of the whole."""
        whole = time.monotonic() - self.began
        return {**self.seconds, "step_seconds": whole, "tokens_per_second": tokens / max(whole, 1e-9)}


def time_left(made: int, missing: int, spent: float) -> str:
    """What the missing steps take when they take as long as those that were made in ``spent`` seconds."""
    if made < 1 or missing < 1:
        return ""
    return f"  left {timedelta(seconds=round(missing * spent / made))} for {missing} step{'s' * (missing > 1)}"


def screen_line(step: int, metrics: Mapping[str, float]) -> str:
    names = [*(name for name in SCREEN if name in metrics), *filter(PASS_RATE.fullmatch, metrics)]
    shown = [f"{name} {metrics[name]:.4g}" for name in names]
    return f"step {step}: " + "  ".join(shown)


def _lines(path: Path, done: int) -> TextIO:
    """The file of the metrics, open at its end. It holds the steps up to ``done`` of an earlier process; an older file
    of another run was moved aside, since a second run must not erase the first one's curve."""
    kept = [line for line in _whole_lines(path) if _step_of(line) <= done] if done else []
    if path.exists() and not done:
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(path.stat().st_mtime))
        path.rename(path.with_name(f"{path.stem}-{stamp}{path.suffix}"))
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)
    return path.open("a", encoding="utf-8", buffering=1)


def _whole_lines(path: Path) -> list[str]:
    """Without a last line that was cut short when the process ended."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _step_of(line: str) -> float:
    """Infinity for a line that a machine without power left broken: the run goes on without it."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf


def _names(folder: Path, config: LogConfig, done: int) -> dict[str, str]:
    """The run's name and its id at W&B: those of the earlier process where this one goes on with its run."""
    path = folder / "run_log.json"
    if done and path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    names = {"name": config.wandb_run_name, "wandb_id": uuid.uuid4().hex[:8]}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(names), encoding="utf-8")
    temporary.replace(path)
    return names


def _sinks(folder: Path, config: LogConfig, resolved: Mapping[str, Any], done: int) -> list[Sink]:
    sinks: list[Sink] = []
    if not (config.use_tensorboard or config.use_wandb):
        return sinks
    names = _names(folder, config, done)
    if config.use_tensorboard:
        sinks.append(TensorBoardSink(Path(config.use_tensorboard) / names["name"], done))
    if config.use_wandb:
        sinks.append(WandbSink(folder, config, resolved, names))
    return sinks


class TensorBoardSink:
    name = "TensorBoard"

    def __init__(self, folder: Path, done: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError('--use_tensorboard needs TensorBoard: pip install "openrlhf[tensorboard]"') from error
        self.writer = SummaryWriter(str(folder), purge_step=done + 1 if done else None)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WandbSink:
    """``--use_wandb`` holds the API key, or ``true`` when the machine is logged in already."""

    name = "W&B"

    def __init__(self, folder: Path, config: LogConfig, resolved: Mapping[str, Any], names: Mapping[str, str]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ValueError('--use_wandb needs W&B: pip install "openrlhf[wandb]"') from error
        if config.use_wandb and config.use_wandb.lower() != "true":
            os.environ["WANDB_API_KEY"] = config.use_wandb
        self.run = wandb.init(
            entity=config.wandb_org,
            project=config.wandb_project,
            group=config.wandb_group,
            name=names["name"],
            id=names["wandb_id"],
            resume="allow",
            dir=str(folder),
            config=dict(resolved),
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.log(dict(metrics), step=step)

    def close(self) -> None:
        self.run.finish()
