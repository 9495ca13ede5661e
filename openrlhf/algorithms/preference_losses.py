"""Losses of preference learning, one entry per pair, never reduced.

``h`` (P,) is how much more than the reference the policy prefers the chosen answer, with log-probs summed over the
tokens of an answer: h = (log π_c − log π_r) − (log π_ref,c − log π_ref,r).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo(h: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """−(1−ε) log σ(βh) − ε log σ(−βh): (P,) → (P,). ε is ``label_smoothing``, the share of pairs labelled wrongly.

    Paper: Rafailov et al., arXiv:2305.18290, eq. 7; ε: Mitchell 2023, "A note on DPO with noisy preferences".
    """
    return -(1 - label_smoothing) * logsigmoid(beta * h) - label_smoothing * logsigmoid(-beta * h)


def ipo(h: Tensor, beta: float) -> Tensor:
    """(h − 1/(2β))²: (P,) → (P,). Paper: Azar et al., arXiv:2310.12036, eq. 17, whose τ is ``beta``."""
    return (h - 1 / (2 * beta)).square()


PREFERENCE_LOSSES: dict[str, Callable[..., Tensor]] = {"dpo": dpo, "ipo": ipo}
