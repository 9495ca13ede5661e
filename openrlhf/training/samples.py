"""Samples of every RL step, into the run folder: what ``openrlhf replay``, ``diagnose`` and ``view`` read.

The work is done in a thread of its own while the models learn, and nothing that goes wrong in it ends the run.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from copy import deepcopy
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from openrlhf.algorithms.kl import kl_estimate
from openrlhf.config.commands import PPOConfig
from openrlhf.objectives.reinforcement import policy_elements, value_elements
from openrlhf.training.ahead import versions
from openrlhf.training.roles import Roles, gather
from openrlhf.training.sample_file import StoredSample, StoredStep, Turn, step_path, stored_steps, write_step
from openrlhf.types import Batch, Prompt, Sample, present

FOLDER = "samples"
PATIENCE = 60.0  # seconds that a step waits for the file of the one before it, and the end of the run for the last
MB = 1_000_000


class SampleStore:
    """The files of one run: at most ``--samples_per_step`` samples each, ``--samples_max_mb`` in all."""

    def __init__(self, run: Path, config: PPOConfig, tokenizer: Any, done: int = 0) -> None:
        """``done`` steps are in the files of an earlier process. Files of another run are moved aside."""
        self.folder = run / FOLDER
        self.config = config
        self.tokenizer = deepcopy(tokenizer)  # one that no other thread uses
        self.thread = ThreadPoolExecutor(1, "samples")
        self.pending: Future[None] | None = None
        self.told = False
        if self.folder.exists():
            _clear(self.folder, done)

    def choose(self, prompts: Sequence[Prompt], samples: Sequence[Sample]) -> list[int]:
        """The rows of the samples to store: whole groups, since rewards are compared within them, at least one.

        Which ones depends on the prompts alone, so that those of the same prompts are there each time they come.
        """
        limit = self.config.samples.samples_per_step
        if limit < 0:
            return list(range(len(samples)))
        rows: dict[int, list[int]] = {}
        for row, sample in enumerate(samples):
            rows.setdefault(sample.group, []).append(row)
        chosen: list[int] = []
        for group in sorted(rows, key=lambda group: zlib.crc32(str(prompts[group].id).encode())):
            if chosen and len(chosen) + len(rows[group]) > limit:
                break
            chosen += rows[group] if limit > 0 else []
        return sorted(chosen)

    def write(
        self,
        step: int,
        rows: Sequence[int],
        batch: Batch,
        samples: Sequence[Sample],
        prompts: Sequence[Prompt],
        parts: Mapping[str, Tensor],
        outcomes: Tensor,
        kl_coef: float,
    ) -> None:
        """Store the ``rows`` of a rollout batch, in the background. ``batch`` is these rows alone, with all fields; the
        rest is of the whole rollout batch."""
        if self._behind():
            self._tell(step, f"the disk is more than {PATIENCE:.0f} s behind")
            return
        self.pending = self.thread.submit(
            self._write, step, list(rows), batch, samples, prompts, parts, outcomes, kl_coef
        )

    def close(self) -> None:
        if self._behind():
            self._tell(None, f"the disk is more than {PATIENCE:.0f} s behind")
        self.thread.shutdown(wait=False, cancel_futures=True)

    def _behind(self) -> bool:
        """Whether the last write is still going on after a while. What went wrong in it is said."""
        if self.pending is None:
            return False
        if wait([self.pending], timeout=PATIENCE).not_done:
            return True
        if (failure := self.pending.exception(timeout=0)) is not None:
            self._tell(None, str(failure) or type(failure).__name__)
        self.pending = None
        return False

    def _tell(self, step: int | None, why: str) -> None:
        if not self.told:
            which = "of a step" if step is None else f"of step {step}"
            tqdm.write(f"samples {which} were not written to {self.folder} ({why}); training goes on without them")
        self.told = True

    def _write(
        self,
        step: int,
        rows: list[int],
        batch: Batch,
        samples: Sequence[Sample],
        prompts: Sequence[Prompt],
        parts: Mapping[str, Tensor],
        outcomes: Tensor,
        kl_coef: float,
    ) -> None:
        fields = {**log_prob_fields(batch), **made_of(batch, self.config, kl_coef)}
        stored = []
        for place, row in enumerate(rows):
            sample, length = samples[row], len(samples[row].tokens)
            stored.append(
                StoredSample(
                    row=row,
                    prompt_id=prompts[sample.group].id,
                    group=sample.group,
                    turns=list(turns(sample, self.tokenizer)),
                    tokens=sample.tokens,
                    action_mask=sample.action_mask,
                    outcome=float(outcomes[row]),
                    reward=float(batch.rewards[place]) if batch.rewards is not None else 0.0,
                    parts={name: float(values[row]) for name, values in parts.items()},
                    extras=sample.metrics,
                    per_token={name: values[place, :length].float() for name, values in fields.items()}
                    | {"weight_versions": present(sample.weight_versions, "weight versions").float()},
                    source=sample.source,
                    label=sample.label,
                    score=sample.score,
                    truncated=sample.truncated,
                    weight_version=int(versions(sample).min()),
                )
            )
        every = torch.cat([sample.tokens for sample in stored]).unique().tolist()
        vocabulary = {token: str(self.tokenizer.decode([token])) for token in every}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_step(step_path(self.folder, step), StoredStep(step, len(samples), kl_coef, stored, vocabulary))
        prune(self.folder, self.config.samples.samples_max_mb)


@dataclass(frozen=True)
class Chosen:
    """Rows of a rollout batch to store; ``old_log_probs``, (rows, T), where the update does without."""

    rows: list[int]
    old_log_probs: Tensor | None

    def of(self, batch: Batch) -> Batch:
        """These rows alone, with all fields."""
        rows = batch.select(self.rows)
        return rows if self.old_log_probs is None else rows.fill(old_log_probs=self.old_log_probs)


def choose(
    store: SampleStore | None,
    prompts: Sequence[Prompt],
    samples: Sequence[Sample],
    batch: Batch,
    roles: Roles,
    deadline_s: float,
) -> Chosen | None:
    """What ``store`` wants of a rollout batch; log π_old, where it is missing, costs a forward of these rows alone."""
    rows = store.choose(prompts, samples) if store else []
    if not rows or batch.old_log_probs is not None:
        return Chosen(rows, None) if rows else None
    (log_probs,) = gather(roles.actor.log_probs(batch.select(rows)), deadline_s=deadline_s)
    return Chosen(rows, log_probs)


def log_prob_fields(batch: Batch) -> dict[str, Tensor]:
    """The models' words on each token, (B, T): what a replay starts from."""
    given = {
        "log_probs": batch.old_log_probs,
        "engine_log_probs": batch.rollout_log_probs,
        "ref_log_probs": batch.ref_log_probs,
        "values": batch.values,
    }
    return {name: value for name, value in given.items() if value is not None}


def made_of(batch: Batch, config: PPOConfig, kl_coef: float) -> dict[str, Tensor]:
    """What follows from them, (B, T) and 0 outside the action mask: KL, advantages, returns and the losses of the first
    optimizer step, where π is still π_old. The entropy bonus is not in the loss: the entropy is not stored."""
    algorithm, mask, old = config.algorithm, batch.action_mask, batch.old_log_probs
    fields: dict[str, Tensor | None] = {"advantages": batch.advantages, "returns": batch.returns}
    if old is not None:
        if batch.ref_log_probs is not None:
            fields["kl"] = kl_estimate(old, batch.ref_log_probs, algorithm.kl_estimator)
        fields["loss"] = policy_elements(old, torch.zeros_like(old), batch, algorithm, kl_coef).elements
    if batch.values is not None:
        fields["value_loss"] = value_elements(batch.values, batch, algorithm.value_clip).elements
    return {name: torch.where(mask, value, 0.0) for name, value in fields.items() if value is not None}


def turns(sample: Sample, tokenizer: Any) -> Iterator[Turn]:
    """The text of each stretch of tokens that one side wrote, special tokens kept."""
    places = groupby(range(len(sample.tokens)), key=sample.action_mask.tolist().__getitem__)
    for policy, stretch in places:
        tokens = sample.tokens[list(stretch)].tolist()
        yield Turn(bool(policy), str(tokenizer.decode(tokens, skip_special_tokens=False)))


def prune(folder: Path, most_mb: float) -> None:
    """Remove the oldest files until all of them take at most ``most_mb``. Raises ValueError when the newest alone takes
    more, which is then the one that goes."""
    *older, newest = [step_path(folder, step) for step in stored_steps(folder)]
    total = newest.stat().st_size
    if total > most_mb * MB:
        newest.unlink()
        raise ValueError(f"they take {total / MB:.1f} MB: raise --samples_max_mb or lower --samples_per_step")
    for path in reversed(older):
        total += path.stat().st_size
        if total > most_mb * MB:
            path.unlink()


def _clear(folder: Path, done: int) -> None:
    """Keep the steps up to ``done`` of this run; those of another run are moved aside, as its metrics are."""
    if not done:
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(folder.stat().st_mtime))
        folder.rename(folder.with_name(f"{folder.name}-{stamp}"))
        return
    for step in stored_steps(folder):
        if step > done:
            step_path(folder, step).unlink()
