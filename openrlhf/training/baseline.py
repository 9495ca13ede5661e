"""What KTO measures before it learns from a mini-batch: log-probs of the reference and the KL baseline."""

from __future__ import annotations

import torch

from openrlhf.algorithms.masked import zero_outside
from openrlhf.algorithms.unpaired_losses import kl_baseline
from openrlhf.objectives.unpaired import LABELLED, MISMATCHED
from openrlhf.training.members import forward
from openrlhf.training.micro_batches import Size
from openrlhf.training.roles import Engine, StepEngine
from openrlhf.types import Batch, pad_columns


def with_kl_baseline(batch: Batch, policy: StepEngine, reference: Engine, micro_batch: Size, packed: bool) -> Batch:
    """This rank's rows of a mini-batch with ``kl_baseline``, the same number on every row, and ``ref_log_probs``, which
    the labelled rows alone need: the others have 0. A number in ``micro_batch`` counts examples.

    The baseline comes from the mismatched rows of the whole mini-batch on all ranks and is fixed before the first
    gradient: a baseline of each micro-batch would make its size part of the objective.
    """
    labelled, mismatched = batch.select(LABELLED), batch.select(MISMATCHED)
    # In the micro-batches of the update, so that a policy that is its reference differs from it by no rounding.
    own = forward(reference, labelled, micro_batch, packed)
    per_token = torch.sub(*(forward(engine, mismatched, micro_batch, packed) for engine in (policy, reference)))
    # An example that only fills up a rank has no action token.
    mask = mismatched.action_mask
    parts = torch.stack([zero_outside(per_token, mask).sum(), mask.any(dim=1).sum().float()])
    log_ratio_sum, answers = policy.sum_over_ranks(parts.to(policy.device)).cpu()
    own = pad_columns(own, batch.tokens.shape[1])
    return batch.fill(
        ref_log_probs=torch.stack([own, torch.zeros_like(own)], dim=1).flatten(0, 1),
        kl_baseline=kl_baseline(log_ratio_sum, answers).repeat(len(batch)),
    )
