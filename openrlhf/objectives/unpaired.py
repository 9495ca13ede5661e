"""Preference learning from single labelled answers: KTO on one micro-batch.

An example is two rows: the labelled answer, which learns, and after it its prompt with the answer of another example,
which only the KL baseline needed. What an example has stands on its first row; the second has 0 and no weight.
"""

from __future__ import annotations

from torch import nn

from openrlhf.algorithms.masked import zero_outside
from openrlhf.algorithms.unpaired_losses import kto
from openrlhf.objectives.loss import Loss
from openrlhf.objectives.pairs import on_chosen_rows
from openrlhf.types import Batch, present

LABELLED, MISMATCHED = slice(0, None, 2), slice(1, None, 2)  # rows of each kind


def kto_loss(
    model: nn.Module,
    batch: Batch,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
    packed: bool,
) -> Loss:
    """The loss of each labelled answer, on its row; ``rewards`` are 1 for a desirable and 0 for an undesirable one.

    Raises ValueError without ``ref_log_probs``, ``kl_baseline`` or ``rewards`` and for an odd number of rows.
    """
    if len(batch) % 2:
        raise ValueError(f"a KTO batch has an even number of rows, got {len(batch)}: an example was cut in two")
    labelled = batch.select(LABELLED)
    baseline = present(labelled.kl_baseline, "kl_baseline")
    desirable = present(labelled.rewards, "rewards") > 0
    log_probs = model(labelled, packed=packed).log_probs
    # Subtracted token by token: the difference of two sums over long answers would lose digits.
    per_token = log_probs - present(labelled.ref_log_probs, "ref_log_probs")
    log_ratios = zero_outside(per_token, labelled.action_mask).sum(dim=1)
    elements = kto(log_ratios, baseline, desirable, beta, desirable_weight, undesirable_weight)
    distance = beta * (log_ratios.detach() - baseline)
    margin = distance.where(desirable, -distance)
    metrics = {
        "accuracy": margin > 0,
        "label_margin": margin,
        "kl_baseline": baseline,
    }
    return Loss(on_chosen_rows(elements), {name: on_chosen_rows(values) for name, values in metrics.items()})
