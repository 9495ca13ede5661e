"""Losses of the reward model, one entry per pair, never reduced.

Both are −log of the Bradley–Terry probability that the chosen answer wins; they differ in the margin.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import logsigmoid, softplus


def sigmoid(chosen: Tensor, rejected: Tensor, margin: Tensor | None = None) -> Tensor:
    """−log σ(c − r − margin): scores (P,) each → (P,).

    Paper: Ouyang et al., arXiv:2203.02155, eq. 1; the margin: Touvron et al., arXiv:2307.09288, eq. 2.
    """
    difference = chosen - rejected
    return -logsigmoid(difference if margin is None else difference - margin)


def logexp(chosen: Tensor, rejected: Tensor) -> Tensor:
    """log(1 + exp(r − c)): scores (P,) each → (P,). Paper: Ouyang et al., arXiv:2203.02155, eq. 1, written out."""
    return softplus(rejected - chosen)


REWARD_LOSSES: dict[str, Callable[..., Tensor]] = {"sigmoid": sigmoid, "logexp": logexp}
