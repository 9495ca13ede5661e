"""How many rows go through a model at a time: a number of them, or as many as a number of tokens allows.

The losses are weighed beforehand, so this changes memory and time and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from openrlhf.config.commands import PPOConfig
from openrlhf.config.groups import ModelConfig, TrainConfig
from openrlhf.data.balance import more_bins, packed_bins, padded_bins
from openrlhf.training.roles import Engine
from openrlhf.types import Batch


@dataclass(frozen=True)
class TokenBudget:
    """At most ``tokens`` in a micro-batch, with its padding unless it is ``packed``. ``rows`` neighbours stay together.

    An example that is longer is a micro-batch of its own: how long one may be is the affair of other flags.
    """

    tokens: int
    packed: bool
    rows: int = 1


Size = int | TokenBudget  # of a micro-batch; a number counts rows


def train_size(train: TrainConfig, model: ModelConfig, rows: int = 1) -> Size:
    """Of an update, where an example has ``rows`` rows."""
    if not train.use_dynamic_batch:
        return train.micro_train_batch_size * rows
    return _budget(train.train_max_tokens_per_gpu, model, rows)


def rollout_size(config: PPOConfig) -> Size:
    """Of the forwards that score a rollout batch."""
    rollout, train = config.rollout, config.train
    if not train.use_dynamic_batch:
        return rollout.micro_rollout_batch_size
    return _budget(rollout.rollout_max_tokens_per_gpu or train.train_max_tokens_per_gpu, config.model, 1)


def _budget(tokens: int, model: ModelConfig, rows: int) -> TokenBudget:
    """Each GPU of a ring has its part of every packed row."""
    return TokenBudget(tokens * model.ring_attn_size, model.packing_samples, rows)


def cut(batch: Batch, size: Size, engine: Engine) -> Sequence[slice | list[int]]:
    """The rows of each micro-batch, every row in one of them.

    By tokens it is collective: all processes of the model make as many micro-batches, which sharded weights need.
    """
    if isinstance(size, int):
        return [slice(start, start + size) for start in range(0, len(batch), size)]
    examples = batch.lengths.view(-1, size.rows)
    lengths = (examples.sum(dim=1) if size.packed else size.rows * examples.amax(dim=1)).tolist()
    bins = (packed_bins if size.packed else padded_bins)(lengths, size.tokens)
    bins = more_bins(bins, engine.largest(len(bins)))
    # The fullest first: processes that wait for each other then have alike ones at the same time.
    bins.sort(key=lambda items: -sum(lengths[item] for item in items))
    return [[item * size.rows + row for item in sorted(items) for row in range(size.rows)] for items in bins]
