"""Preference learning without a reward model: DPO, cDPO and IPO on one micro-batch of pairs."""

from __future__ import annotations

from torch import nn

from openrlhf.algorithms.language_losses import nll
from openrlhf.algorithms.masked import zero_outside
from openrlhf.algorithms.preference_losses import PREFERENCE_LOSSES
from openrlhf.objectives.loss import Loss
from openrlhf.objectives.pairs import on_chosen_rows, split_pairs
from openrlhf.types import Batch, present


def preference_loss(
    model: nn.Module,
    batch: Batch,
    *,
    beta: float,
    label_smoothing: float,
    ipo: bool,
    nll_loss_coef: float,
    packed: bool,
) -> Loss:
    """The loss of each pair, (B,), on its chosen row; with ``nll_loss_coef``, that much of the chosen answer's −log π
    per token is added (Pang et al., arXiv:2404.19733, eq. 1). ``label_smoothing`` is DPO's alone.

    Raises ValueError without ``ref_log_probs`` and for an odd number of rows.
    """
    mask = batch.action_mask
    log_probs = model(batch, packed=packed).log_probs
    # Subtracted token by token: the difference of two sums over long answers would lose digits.
    log_ratios = zero_outside(log_probs - present(batch.ref_log_probs, "ref_log_probs"), mask).sum(dim=1)
    chosen, rejected = split_pairs(log_ratios)
    h = chosen - rejected
    elements = PREFERENCE_LOSSES["ipo"](h, beta) if ipo else PREFERENCE_LOSSES["dpo"](h, beta, label_smoothing)
    metrics = {
        "accuracy": chosen > rejected,
        "chosen_reward": beta * chosen.detach(),
        "rejected_reward": beta * rejected.detach(),
        "reward_margin": beta * h.detach(),
    }
    if nll_loss_coef != 0:
        per_token = zero_outside(nll(log_probs), mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        chosen_nll, _ = split_pairs(per_token)
        elements = elements + nll_loss_coef * chosen_nll
        metrics["nll"] = chosen_nll.detach()
    return Loss(on_chosen_rows(elements), {name: on_chosen_rows(values) for name, values in metrics.items()})
