"""The load-balancing loss of a mixture of experts, added to any objective."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from openrlhf.models.experts import Balance, routers_recorded
from openrlhf.objectives.loss import Loss, Objective
from openrlhf.objectives.pairs import on_chosen_rows, split_pairs
from openrlhf.types import Batch

Shape = Callable[[Balance], Tensor]  # → the shape of the objective's loss


def balanced(objective: Objective, coef: float, shape: Shape) -> Objective:
    """``objective`` plus ``coef`` times the balance of the routers, weighted element by element like its own loss.

    Raises ValueError, when called, for a model without experts.
    """
    if coef == 0:
        return objective

    def both(model: nn.Module, batch: Batch) -> Loss:
        with routers_recorded(model) as balances:
            loss = objective(model, batch)
        (balance,) = balances
        elements = shape(balance)
        return Loss(loss.elements + coef * elements, {**loss.metrics, "aux_loss": elements.detach()})

    return both


def each_token(balance: Balance) -> Tensor:
    """(B, T): of losses with an entry a token."""
    return balance.elements


def each_row(balance: Balance) -> Tensor:
    """(B,): mean over the tokens of a row."""
    return balance.elements.sum(dim=1) / balance.attention_mask.sum(dim=1).clamp(min=1)


def each_pair(balance: Balance) -> Tensor:
    """(B,): mean over the two rows of a pair, on its chosen row."""
    chosen, rejected = split_pairs(each_row(balance))
    return on_chosen_rows((chosen + rejected) / 2)


def each_labelled(balance: Balance) -> Tensor:
    """(2B,): where only the B labelled rows of KTO's examples went through the model, on those rows."""
    return on_chosen_rows(each_row(balance))
