"""Mean and standard deviation of a reward model's scores, which ``--normalize_reward`` uses later."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from openrlhf.training.fit import rank_rows
from openrlhf.training.members import forward
from openrlhf.training.micro_batches import Size
from openrlhf.training.roles import TrainEngine
from openrlhf.types import Sample

LEAST_STD = 1e-8
LEAST_PAIRS = 100
SHARE = 100  # one training pair in so many, where there are no others


def spread_pairs(samples: Sequence[Sample]) -> Sequence[Sample]:
    """One pair in a hundred of ``samples`` (chosen, rejected, chosen, …), at least 100 or all, at even distances."""
    pairs = len(samples) // 2
    wanted = min(pairs, max(LEAST_PAIRS, pairs // SHARE))
    first = [2 * (i * pairs // wanted) for i in range(wanted)]
    return [sample for i in first for sample in samples[i : i + 2]]


def score_statistics(
    engine: TrainEngine, samples: Sequence[Sample], micro_batch: Size, packed: bool, pad_token_id: int
) -> tuple[float, float]:
    """Mean and unbiased standard deviation of the scores of ``samples`` on all ranks; the latter at least 1e-8."""
    rows = rank_rows(samples, engine, pad_token_id)
    scores = forward(engine, rows, micro_batch, packed, what="scores").double()
    scores = scores[rows.action_mask.any(dim=1)]  # without the rows that only fill up a rank
    sums = torch.stack([torch.tensor(float(len(scores)), dtype=torch.float64), scores.sum(), scores.square().sum()])
    count, total, squares = engine.sum_over_ranks(sums.to(engine.device)).tolist()
    mean = total / count
    variance = (squares - count * mean**2) / max(count - 1, 1)
    return mean, max(variance, LEAST_STD**2) ** 0.5
