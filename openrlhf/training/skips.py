"""Optimizer steps that were left out, since a loss or a gradient was not finite: of which rows, and when to give up."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from openrlhf.config.groups import TrainConfig
from openrlhf.training.log import RunLog
from openrlhf.training.metric_names import SKIPPED_STEP
from openrlhf.types import Batch, Metrics, present


class Skips:
    """Every process of a run notes the same, so all give up after the same step. ``why`` says why, or is None."""

    why: str | None = None

    def __init__(self, most: int, log: RunLog, before: Mapping[str, int] | None = None) -> None:
        """``most`` steps in a row are too many. ``before`` has those in a row up to now, of each model."""
        self.most = most
        self.log = log
        self.in_a_row = Counter(before or {})

    def note(self, step: int, model: str, skipped: bool, rows: Sequence[int]) -> None:
        """One optimizer step of ``model`` within step ``step`` of the run; ``rows`` are those of its mini-batch, by
        their number in the data."""
        self.in_a_row[model] = self.in_a_row[model] + 1 if skipped else 0
        if skipped:
            self.log.skipped(step, model, rows)
        if self.in_a_row[model] >= self.most:
            self.why = (
                f"--max_skipped_steps {self.most}: in as many optimizer steps in a row, up to step {step}, the loss or "
                f"the gradient of the {model} was not finite; skipped.jsonl in --save_path names their rows. Lower the "
                "learning rate, or look at the rewards and at these rows"
            )

    def note_update(self, step: int, model: str, metrics: Metrics, batch: Batch, train: TrainConfig) -> None:
        """All optimizer steps on a rollout batch, of which ``metrics`` came back; none where the model learnt none."""
        if "skipped_steps" not in metrics:
            return
        groups, size = present(batch.groups, "groups").tolist(), train.train_batch_size
        mini_batches = [groups[start : start + size] for start in range(0, len(groups), size)]
        for number in range(train.max_epochs * math.ceil(len(groups) / size)):
            self.note(step, model, f"{SKIPPED_STEP}{number}" in metrics, mini_batches[number % len(mini_batches)])
