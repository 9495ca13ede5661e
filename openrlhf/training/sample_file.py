"""One file a step with samples of an RL run: ``samples/step_000012.parquet`` in the run folder.

A row is a sample. Per-token columns have the shape of ``tokens`` and entry t speaks of token t, as in ``types.py``. The
file is plain Parquet: any tool that reads tables opens it. It appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

FORMAT = 1
META = b"openrlhf"  # the key of what is said once a file, as JSON
NAME = re.compile(r"step_(\d+)\.parquet")
PART, EXTRA, PER_TOKEN = "part/", "extra/", "token/"

# Per-token columns that may be there, and what they are.
TOKEN_FIELDS: dict[str, str] = {
    "log_probs": "log-prob by the actor before the update, at the sampling temperature",
    "engine_log_probs": "log-prob by the engine that sampled",
    "weight_versions": "syncs that the engine had received when it sampled",
    "ref_log_probs": "log-prob by the reference",
    "kl": "KL estimate between actor and reference, by --kl_estimator",
    "values": "value by the critic before the update",
    "advantages": "advantage",
    "returns": "return",
    "loss": "policy loss at the first optimizer step, without the entropy bonus",
    "value_loss": "value loss at the first optimizer step",
}


@dataclass(frozen=True)
class Turn:
    """A stretch of the trajectory that one side wrote: the policy, or the prompt, a tool, an environment."""

    policy: bool
    text: str


@dataclass(frozen=True)
class StoredSample:
    """One trajectory with what the step made of it. Tensors are [T]."""

    row: int  # its place in the rollout batch
    prompt_id: int
    group: int
    turns: Sequence[Turn]
    tokens: Tensor
    action_mask: Tensor
    outcome: float  # the weighted sum of the parts
    reward: float  # after what length takes off
    parts: Mapping[str, float] = field(default_factory=dict)  # of each source of rewards, in the order of their weights
    extras: Mapping[str, float] = field(default_factory=dict)  # extra_logs of the reward function
    per_token: Mapping[str, Tensor] = field(default_factory=dict)  # names of TOKEN_FIELDS
    source: str = "default"
    label: str = ""
    score: float | None = None
    truncated: bool = False
    weight_version: int = 0  # of the oldest token


@dataclass(frozen=True)
class StoredStep:
    """The stored samples of a step, whole groups of them. ``rows`` is how many the rollout batch had."""

    step: int
    rows: int
    kl_coef: float
    samples: Sequence[StoredSample]
    vocabulary: Mapping[int, str] = field(default_factory=dict)  # the text of each token that occurs

    @property
    def whole(self) -> bool:
        return len(self.samples) == self.rows

    def name_of(self, sample: StoredSample) -> str:
        """What a person calls a sample: ``12:5`` is row 5 of the rollout batch of step 12."""
        return f"{self.step}:{sample.row}"


def step_path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:06d}.parquet"


def stored_steps(folder: Path) -> list[int]:
    """The steps of which there is a file, in order."""
    names = [NAME.fullmatch(path.name) for path in folder.glob("step_*.parquet")]
    return sorted(int(name.group(1)) for name in names if name)


def write_step(path: Path, step: StoredStep) -> None:
    """Write the file beside its place and then move it there. Raises OSError where the disk refuses."""
    temporary = path.with_suffix(".tmp")
    try:
        pq.write_table(_table(step), temporary, compression="zstd")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_step(path: Path, prompt_id: int | None = None) -> StoredStep:
    """All samples of a file, or those of a prompt. Raises ValueError, naming the file, when it is not one of ours."""
    try:
        table = pq.read_table(path, filters=None if prompt_id is None else [("prompt_id", "=", prompt_id)])
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read as samples of a step ({error}); leave it out.") from None
    said = (table.schema.metadata or {}).get(META)
    meta = json.loads(said) if said else {}
    if meta.get("format") != FORMAT:
        raise ValueError(f"{path} holds no samples in format {FORMAT}: read it with the version that wrote it.")
    return StoredStep(
        step=meta["step"],
        rows=meta["rows"],
        kl_coef=meta["kl_coef"],
        samples=_samples(table),
        vocabulary={int(token): text for token, text in meta["vocabulary"].items()},
    )


def _table(step: StoredStep) -> pa.Table:
    samples = step.samples
    columns: dict[str, Any] = {
        name: [vars(sample)[name] for sample in samples]
        for name in ("row", "prompt_id", "group", "source", "label", "truncated", "weight_version")
    }
    for name in ("outcome", "reward", "score"):
        columns[name] = pa.array([vars(sample)[name] for sample in samples], pa.float64())
    columns["turns"] = [[{"policy": turn.policy, "text": turn.text} for turn in sample.turns] for sample in samples]
    columns |= _named(PART, [sample.parts for sample in samples])
    columns |= _named(EXTRA, [sample.extras for sample in samples])
    columns["tokens"] = _ragged([sample.tokens for sample in samples])
    columns["action_mask"] = _ragged([sample.action_mask for sample in samples])
    for name in samples[0].per_token:
        columns[PER_TOKEN + name] = _ragged([sample.per_token[name] for sample in samples])
    meta = {
        "format": FORMAT,
        "step": step.step,
        "rows": step.rows,
        "kl_coef": step.kl_coef,
        "vocabulary": {str(token): text for token, text in step.vocabulary.items()},
    }
    return pa.table(columns).replace_schema_metadata({META: json.dumps(meta).encode()})


def _named(prefix: str, maps: Sequence[Mapping[str, float]]) -> dict[str, pa.Array]:
    """A column for each name; null where a sample has no such number."""
    names = dict.fromkeys(name for each in maps for name in each)
    return {prefix + name: pa.array([each.get(name) for each in maps], pa.float64()) for name in names}


def _ragged(rows: Sequence[Tensor]) -> pa.ListArray:
    """[T_i] tensors → a column of lists."""
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(torch.cat(list(rows)).numpy()))


def _samples(table: pa.Table) -> list[StoredSample]:
    names = table.column_names
    tokens, mask = _tensors(table, "tokens"), _tensors(table, "action_mask")
    per_token = {n.removeprefix(PER_TOKEN): _tensors(table, n) for n in names if n.startswith(PER_TOKEN)}
    plain = table.select([n for n in names if n not in ("tokens", "action_mask") and not n.startswith(PER_TOKEN)])
    made = []
    for i, row in enumerate(plain.to_pylist()):
        turns = [Turn(turn["policy"], turn["text"]) for turn in row.pop("turns")]
        parts, extras = _of(row, PART), _of(row, EXTRA)
        own = {name: value for name, value in row.items() if not name.startswith((PART, EXTRA))}
        fields = {name: column[i] for name, column in per_token.items()}
        made.append(
            StoredSample(
                **own, turns=turns, tokens=tokens[i], action_mask=mask[i], parts=parts, extras=extras, per_token=fields
            )
        )
    return made


def _tensors(table: pa.Table, name: str) -> list[Tensor]:
    """A column of lists → [T_i] tensors."""
    column = table[name].combine_chunks()
    values = torch.from_numpy(column.flatten().to_numpy(zero_copy_only=False).copy())
    return list(values.split(column.value_lengths().to_pylist()))


def _of(row: Mapping[str, Any], prefix: str) -> dict[str, float]:
    return {
        name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix) and value is not None
    }
