"""A student's cross-entropy under its teacher's distribution, a chunk of tokens at a time.

The teacher hands out hidden states and its head's weight rather than logits: those of both models over a whole
micro-batch would be the largest things in memory. Each chunk's logits are computed again in the backward pass, unless
there is one chunk only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from openrlhf.models.head import CHUNK_ELEMENTS, LogitMap, call_as


@dataclass(frozen=True)
class Teaching:
    """What a teacher says of the M predicted action tokens of a batch, a product short of its logits. No gradient.

    A dataclass and not a tuple, so that wrappers of the student hand it on untouched.
    """

    states: Tensor  # (M, H)
    weight: Tensor  # (V, H), of the tokens that the tokenizer has
    bias: Tensor | None  # (V,)
    logit_map: LogitMap

    def probabilities(self, rows: Tensor) -> Tensor:
        """(R, V) float32 for the (R, H) ``rows`` of ``states``."""
        logits = linear(rows.to(self.weight.dtype), self.weight, self.bias)
        return torch.softmax(self.logit_map.apply(logits), dim=-1)


def distill_tokens(
    head: nn.Module,
    states: Tensor,
    targets: Tensor,
    teaching: Teaching,
    *,
    logit_map: LogitMap,
    chunk_elements: int | None = None,
) -> tuple[Tensor, Tensor]:
    """log p(target) and −Σ_v p_teacher(v) log p(v), both (M,), where p is the student's softmax at ``states`` (M, H).

    The student's ``head`` may know more tokens than the teacher, padding for one: the teacher gives them no
    probability. Tokens with an infinite student logit are left out of the sum. ``chunk_elements`` bounds the student's
    logits alive at once, the teacher's come on top. Results are float32 (float64 for a float64 model) and
    differentiable with respect to the student.
    """
    forward = head.forward
    known = len(teaching.weight)

    def score(states: Tensor, targets: Tensor, taught: Tensor) -> tuple[Tensor, Tensor]:
        logits = logit_map.apply(forward(states))
        log_p = torch.log_softmax(logits, dim=-1)
        finite = log_p.masked_fill(logits.isinf(), 0.0)[:, :known]
        cross = -torch.linalg.vecdot(teaching.probabilities(taught).to(finite.dtype), finite)
        return log_p.gather(1, targets[:, None]).squeeze(1), cross

    def every(states: Tensor) -> tuple[Tensor, Tensor]:
        rows = max(1, (chunk_elements or CHUNK_ELEMENTS[states.device.type]) // known)
        pieces = list(zip(states.split(rows), targets.split(rows), teaching.states.split(rows), strict=True))
        if len(pieces) > 1 and torch.is_grad_enabled():
            scored = [checkpoint(score, *piece, use_reentrant=False) for piece in pieces]
        else:
            scored = [score(*piece) for piece in pieces]
        log_probs, cross = (torch.cat(column) for column in zip(*scored, strict=True))
        return log_probs, cross

    return call_as(head, every, states)
