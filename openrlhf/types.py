"""The vocabulary: Prompt → Sample → Batch.

One index. Every per-token tensor has the shape of ``tokens`` and entry ``t`` speaks of token ``t``:
``log_probs[b, t]`` is log π(token t | tokens before t), ``values[b, t]`` is the value of the state in which token t
was chosen, ``action_mask[b, t]`` says that the policy chose token t (false on prompt, tool output and padding).
The shift by one happens once, inside ``openrlhf.models``; nobody else slices ``[:, :-1]``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Metrics = dict[str, float]


@dataclass(frozen=True)
class Prompt:
    """One question for the policy. ``id`` is the number of its row."""

    id: int
    text: str
    tokens: list[int]
    label: str = ""
    source: str = "default"


@dataclass
class Sample:
    """One trajectory, ragged, on the CPU.

    ``reward`` trains, ``score`` (0–1) filters. ``rollout_log_probs`` are the engine's own, under the
    sampling temperature; ``weight_versions`` say how many syncs the engine had received when it chose a token. Entries
    of both outside ``action_mask`` are 0.
    """

    tokens: Tensor  # [T] int64
    action_mask: Tensor  # [T] bool
    rollout_log_probs: Tensor | None = None  # [T] float32
    labels: Tensor | None = None  # [T] float32, what is to be learned at the marked tokens where it is not the token
    group: int = 0
    prompt: str = ""
    label: str = ""
    source: str = "default"
    reward: float | None = None
    turn_rewards: Tensor | None = (
        None  # [T] float32, the parts of an agent's reward, each on the last token of its turn
    )
    score: float | None = None
    truncated: bool = False
    weight_versions: Tensor | None = None  # [T] int64
    metrics: Metrics = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """Right-padded rows; the same object from SFT to PPO. Fields that do not apply are None.

    For supervised data ``action_mask`` marks the tokens that carry loss. Rows are independent: any selection of rows
    is a batch again.
    """

    tokens: Tensor  # (B, T) int64
    attention_mask: Tensor  # (B, T) bool
    action_mask: Tensor  # (B, T) bool
    groups: Tensor | None = None  # (B,) int64
    rewards: Tensor | None = None  # (B,) float32, outcome rewards
    turn_rewards: Tensor | None = None  # (B, T) float32, where agents gave one a turn; they sum to the rewards
    scores: Tensor | None = None  # (B,) float32
    truncated: Tensor | None = None  # (B,) bool
    labels: Tensor | None = None  # (B, T) float32
    rollout_log_probs: Tensor | None = None  # (B, T) float32, by the engine
    old_log_probs: Tensor | None = None  # (B, T) float32, by the actor before the update
    ref_log_probs: Tensor | None = None  # (B, T) float32
    kl_baseline: Tensor | None = None  # (B,) float32, KL of policy and reference that KTO counts gains from
    values: Tensor | None = None  # (B, T) float32, by the critic before the update
    advantages: Tensor | None = None  # (B, T) float32
    returns: Tensor | None = None  # (B, T) float32
    loss_weights: Tensor | None = None  # shape of the loss; sums to 1 over the mini-batch on all ranks

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def lengths(self) -> Tensor:
        """(B,) int64: attended tokens of each row."""
        return self.attention_mask.sum(
            dim=1, dtype=torch.int32
        ).long()  # the sum of 8 bytes an entry takes twice as long

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are present, by name."""
        present = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in present.items() if value is not None}

    def inputs(self) -> Batch:
        """What a forward needs: tokens and masks alone."""
        return Batch(self.tokens, self.attention_mask, self.action_mask)

    def fill(self, **new: Tensor | None) -> Batch:
        """A copy with these fields set."""
        return replace(self, **new)  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> Batch:
        return Batch(**{name: value.to(device) for name, value in self.tensors().items()})

    def select(self, rows: Tensor | Sequence[int] | slice) -> Batch:
        """These rows, in this order, with the padding that none of them needs cut off."""
        index = rows if isinstance(rows, slice) else torch.as_tensor(rows, device=self.tokens.device)
        longest = int(self.attention_mask[index].any(dim=0).sum())
        # Cut first: what is cut off afterwards would be copied, and go along when the rows are sent.
        return Batch(**{name: (v[:, :longest] if v.dim() == 2 else v)[index] for name, v in self.tensors().items()})

    def with_fillers(self, multiple: int) -> Batch:
        """Rows without any action token added at the end until the number of rows is a multiple of ``multiple``."""
        missing = -len(self) % multiple
        if missing == 0:
            return self
        shortest = int(self.lengths.argmin())
        rows = self.select([*range(len(self)), *[shortest] * missing])
        keep = torch.arange(len(rows)) < len(self)
        return rows.fill(action_mask=rows.action_mask & keep[:, None].to(rows.action_mask.device))


def collate(samples: Sequence[Sample], pad_token_id: int) -> Batch:
    """Samples → Batch, in the same order. Optional fields appear when every sample has them.

    Raises ValueError for an empty list.
    """
    if not samples:
        raise ValueError("collate: no samples to make a batch of")
    lengths = torch.tensor([len(s.tokens) for s in samples])
    return Batch(
        tokens=pad_sequence([s.tokens for s in samples], batch_first=True, padding_value=pad_token_id),
        attention_mask=torch.arange(int(lengths.max())) < lengths[:, None],
        action_mask=pad_sequence([s.action_mask for s in samples], batch_first=True),
        groups=torch.tensor([s.group for s in samples]),
        rewards=_column(s.reward for s in samples),
        turn_rewards=_rows([s.turn_rewards for s in samples]),
        scores=_column(s.score for s in samples),
        truncated=torch.tensor([s.truncated for s in samples]),
        labels=_rows([s.labels for s in samples]),
        rollout_log_probs=_rows([s.rollout_log_probs for s in samples]),
    )


def _rows(rows: Sequence[Tensor | None]) -> Tensor | None:
    there = [row for row in rows if row is not None]
    return pad_sequence(there, batch_first=True) if len(there) == len(rows) else None


def _column(values: Iterable[float | None]) -> Tensor | None:
    column = list(values)
    return None if any(v is None for v in column) else torch.tensor(column, dtype=torch.float32)


def present(x: Tensor | None, name: str) -> Tensor:
    """A field of a batch that this computation cannot do without. Raises ValueError when it was not filled."""
    if x is None:
        raise ValueError(f"the batch has no {name}: the step that fills it did not run")
    return x


def pad_columns(x: Tensor, width: int) -> Tensor:
    """(B, T) → (B, width) with zeros on the right."""
    return torch.nn.functional.pad(x, (0, width - x.shape[1]))


def merge_metrics(parts: Sequence[Mapping[str, float]]) -> Metrics:
    """The mean of each key over the parts that have it."""
    keys = dict.fromkeys(key for part in parts for key in part)
    return {key: sum(p[key] for p in parts if key in p) / sum(key in p for p in parts) for key in keys}
