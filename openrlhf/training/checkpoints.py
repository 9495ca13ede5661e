"""When a run saves itself, and how it is brought back: what the loops ask after each step.

Everything is collective: every process of a supervised run makes the same calls, and they agree on failures and on the
step at which they stop. An RL run has one driver, and the parts live where the roles are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

from openrlhf.config.groups import CheckpointConfig
from openrlhf.data.sampler import Cursor
from openrlhf.rollout.engine import EnginesLost
from openrlhf.rollout.rewards import RewardFailed
from openrlhf.training import checkpoint_files as files
from openrlhf.training.roles import PartLost, gather
from openrlhf.training.signals import StopRequest

MOST_FAILURES = 3  # checkpoints in a row that could not be written


@dataclass(frozen=True)
class Progress:
    """Where a run stands after ``step`` steps. In RL ``kl_coef`` is the KL coefficient of the next step, and ``best``
    the highest value so far of ``--best_metric_key``. ``skipped`` has the optimizer steps left out in a row, of each
    model."""

    step: int = 0
    cursor: Cursor = field(default_factory=Cursor)
    kl_coef: float | None = None
    best: float | None = None
    skipped: Mapping[str, int] = field(default_factory=dict)


class Part(Protocol):
    """Something that has state. Futures answer why it failed, or None."""

    def save_state(self, state: Path | None, weights: Path | None) -> Future[str | None]:
        """Write the state into a folder, and a Hugging Face folder, where given."""
        ...

    def load_state(self, state: Path, redistribute: bool) -> Future[str | None]: ...


class Team(Protocol):
    """The processes that run the loop together."""

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks."""
        ...

    @property
    def size(self) -> int: ...

    def anywhere(self, here: bool) -> bool: ...

    def from_first(self, number: int) -> int:
        """What the first process says."""
        ...


class Stopped(Exception):
    """A signal asked the run to stop, and it has said how to go on."""


class Checkpoints:
    """``parts`` by the folder inside a checkpoint that is theirs; ``weights`` by the ending of their Hugging Face
    folder, as in ``_hf``. ``made_by`` is what must be the same for another run to go on from here."""

    def __init__(
        self,
        config: CheckpointConfig,
        made_by: Mapping[str, Any],
        parts: Mapping[str, Part],
        weights: Mapping[str, str],
        team: Team,
        stop: StopRequest,
        deadline_s: float,
    ) -> None:
        self.config = config
        self.root = Path(config.ckpt_path)
        self.made_by = dict(made_by)
        self.parts = dict(parts)
        self.weights = dict(weights)
        self.team = team
        self.stop = stop
        self.deadline_s = deadline_s
        self.failures = 0
        self.start = self._load() if config.load_checkpoint else self._fresh()

    def after(self, progress: Progress) -> None:
        """Save when it is time to, and stop when a signal asked for it.

        Raises Stopped, and ValueError when the disk took none of three checkpoints in a row, or not the last one.
        """
        due = self.config.save_steps > 0 and progress.step % self.config.save_steps == 0
        if not due and not self._asked_to_stop():
            return
        saved = self._save(progress)
        if not self._asked_to_stop():  # one that came meanwhile must not wait for another step
            return
        if not saved:
            raise ValueError(f"stopped after step {progress.step} without a checkpoint: --ckpt_path took none")
        self._say(
            f"stopped after step {progress.step} ({self.stop.name or 'a signal'}): the same command with "
            f"--load_checkpoint goes on from {self.root / files.step_name(progress.step)}"
        )
        raise Stopped

    @contextmanager
    def saved_first(self, progress: Progress) -> Iterator[None]:
        """Inside, a failure of what makes samples leaves the state saved: that is whole."""
        try:
            yield
        except (EnginesLost, RewardFailed):
            if progress.step > 0:
                self._keep(progress)
            raise

    def end(self, progress: Progress, why: str) -> NoReturn:
        """Save, unless that has just been done, and raise ValueError that says ``why`` and where the state is."""
        if self._keep(progress):
            name = self.root / files.step_name(progress.step)
            raise ValueError(f"{why}. The state after step {progress.step} is in {name}.")
        raise ValueError(f"{why}.")

    def _keep(self, progress: Progress) -> bool:
        """Whether there is a checkpoint of this step in the end."""
        if self.config.save_steps <= 0 or self.config.disable_ds_ckpt:
            return False
        return progress.step % self.config.save_steps == 0 or self._save(progress)

    def _asked_to_stop(self) -> bool:
        return self.config.save_steps > 0 and self.team.anywhere(self.stop.name is not None)

    def _save(self, progress: Progress) -> bool:
        step = progress.step
        failure = self._written(progress)
        if self.team.anywhere(failure is not None):
            self.failures += 1
            if failure is not None:
                print(f"no checkpoint of step {step} in --ckpt_path {self.root}: {failure}", file=sys.stderr)
            self._on_first(lambda: files.sweep(self.root))
            if self.failures == MOST_FAILURES:
                raise ValueError(
                    f"--ckpt_path {self.root} took none of the last {MOST_FAILURES} checkpoints: make room there, or "
                    "name another folder and copy the last checkpoint into it"
                )
            return False
        self.failures = 0
        most = self.config.max_ckpt_mem * files.GIGABYTE
        self._on_first(lambda: files.prune(self.root, step, self.config.max_ckpt_num, most))
        return True

    def _written(self, progress: Progress) -> str | None:
        """Why this process could not do its part, or None. Where another's failed, a later one is not begun."""
        name = files.step_name(progress.step)
        state = None if self.config.disable_ds_ckpt else self.root / (name + files.TEMPORARY)
        endings = self.weights if self.config.save_hf_ckpt else {}
        names = ([name] if state else []) + [name + ending for ending in endings.values()]
        failure = self._on_first(lambda: [files.begin(self.root, each) for each in names])
        if self.team.anywhere(failure is not None):
            return failure
        saves = [
            part.save_state(
                state / folder if state else None,
                self.root / (name + endings[folder] + files.TEMPORARY) if folder in endings else None,
            )
            for folder, part in self.parts.items()
        ]
        failure = next((reason for reason in gather(*saves, deadline_s=self.deadline_s) if reason), None)
        if self.team.anywhere(failure is not None):
            return failure
        return self._on_first(lambda: self._commit(progress, state is not None, list(endings.values())))

    def _commit(self, progress: Progress, state: bool, endings: list[str]) -> None:
        name = files.step_name(progress.step)
        for ending in endings:
            files.publish(self.root, name + ending)
        if state:
            files.commit(self.root, progress.step, asdict(progress), self.made_by, self.team.size)

    def _on_first(self, work: Callable[[], Any]) -> str | None:
        """Why the disk did not take the work of the first process."""
        try:
            if self.team.first:
                work()
        except OSError as error:
            return str(error)
        return None

    def _fresh(self) -> Progress:
        self._on_first(lambda: files.sweep(self.root))
        if self.config.save_steps > 0 and (old := files.candidates(self.root)):
            self._say(
                f"--ckpt_path {self.root} holds {old[0].name} of an earlier run, which gives way as new ones come; "
                "--load_checkpoint would go on from it"
            )
        return Progress()

    def _load(self) -> Progress:
        """Bring every part back to the newest checkpoint that is whole.

        Raises ValueError when there are checkpoints but none is whole, or it is of another run.
        """
        self._on_first(lambda: files.sweep(self.root))
        step = self.team.from_first(self._newest() if self.team.first else 0)
        if step < 0:
            raise ValueError(
                f"--load_checkpoint: every checkpoint in {self.root} is damaged; leave the flag out to start from the "
                "beginning"
            )
        if step == 0:
            self._say(f"--load_checkpoint: there is no checkpoint in {self.root}; starting from the beginning")
            return Progress()
        folder = self.root / files.step_name(step)
        manifest = files.read_manifest(folder)
        refuse_another_run(folder, manifest.made_by, self.made_by)
        loads = [part.load_state(folder / name, self.config.use_ds_universal_ckpt) for name, part in self.parts.items()]
        failure = next((reason for reason in gather(*loads, deadline_s=self.deadline_s) if reason), None)
        if self.team.anywhere(failure is not None):
            raise ValueError(f"--load_checkpoint: {failure or 'another process could not load its part'}")
        self._say(f"going on after step {step} from {folder}")
        return Progress(**{**manifest.progress, "cursor": Cursor(**manifest.progress["cursor"])})

    def _newest(self) -> int:
        """The step of the newest checkpoint that is whole, 0 when there is none at all, −1 when all are damaged."""
        found = files.candidates(self.root)
        for folder in found:
            try:
                return files.verify(folder).step
            except files.Damaged as damage:
                print(f"PASSED OVER: the checkpoint {folder} is damaged: {damage}", file=sys.stderr)
        return -1 if found else 0

    def _say(self, text: str) -> None:
        if self.team.first:
            print(text)


@contextmanager
def lost_after(step: int) -> Iterator[None]:
    """Inside, a failure of what makes samples is PartLost: it has worked for ``step`` steps, so it may work again.
    Before the first step it is a matter of what was given, and comes through."""
    try:
        yield
    except (EnginesLost, RewardFailed) as failure:
        if step == 0:
            raise
        raise PartLost(str(failure).rstrip(".")) from failure


def close_step(progress: Progress, checkpoints: Checkpoints | None, why: str | None) -> None:
    """What ends a step: a checkpoint when it is due, and the end of the run when there is a reason ``why``."""
    if checkpoints:
        checkpoints.after(progress)
    if why and checkpoints:
        checkpoints.end(progress, why)
    if why:
        raise ValueError(f"{why}.")


def way_on(root: Path) -> str:
    """How a run that could not end goes on, whose ``--ckpt_path`` is ``root``."""
    if found := files.candidates(root):
        return f"The same command with --load_checkpoint goes on from {found[0]}."
    return f"There is no checkpoint in --ckpt_path {root} to go on from: --save_steps writes them."


def model_not_saved(config: CheckpointConfig, why: str) -> ValueError:
    """What to raise when ``--save_path`` does not take the trained model."""
    return ValueError(
        f"--save_path {config.save_path} did not take the trained model: {why}. Make room there. "
        f"{way_on(Path(config.ckpt_path))}"
    )


def refuse_another_run(folder: Path, saved: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """Raise ValueError naming what differs between the run that saved and this one."""
    names = [name for name in {**saved, **mine} if saved.get(name) != mine.get(name)]
    if names:
        listed = ", ".join(f"{name} ({saved.get(name)!r} there, {mine.get(name)!r} here)" for name in names)
        raise ValueError(
            f"--load_checkpoint: {folder} is of another run, which differs in {listed}; give the same, or name another "
            "--ckpt_path"
        )
