"""From hidden states to log-probabilities and entropies, a chunk of tokens at a time.

The logits of a whole micro-batch never exist: at a vocabulary of 150,000 they would be the largest thing in memory.
Of the first ones, as many as a fixed amount of memory holds are kept for the backward pass, which computes the others
again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

# Logits in one chunk, 128 and 32 MiB in float32: few enough to be small beside the model, enough for wide products.
CHUNK_ELEMENTS = {"cuda": 2**25, "cpu": 2**23}
# Logits kept, 1 GiB and 192 MiB in float32: they save the backward pass one of its three products.
KEPT_ELEMENTS = {"cuda": 2**28, "cpu": 3 * 2**24}

Scores = tuple[Tensor, Tensor | None]
T = TypeVar("T")


@dataclass(frozen=True)
class LogitMap:
    """What a model does to its head's output: logits · ``scale``, then, with a ``cap``, cap · tanh(logits / cap)."""

    scale: float = 1.0
    cap: float | None = None

    def apply(self, logits: Tensor) -> Tensor:
        """The model's logits, float32 or wider, from its head's output."""
        logits = logits.to(_wide(logits.dtype)) * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def score_tokens(
    head: nn.Module,
    states: Tensor,
    targets: Tensor,
    *,
    logit_map: LogitMap,
    temperature: float,
    entropy: bool,
    chunk_elements: int | None = None,
) -> Scores:
    """log softmax(logits / temperature) at ``targets`` (M,) and, if asked, the entropy of that softmax (M,).

    ``states`` (M, H). ``chunk_elements`` bounds the logits of a chunk, and those that are kept to one chunk. Results
    are float32 (float64 for a float64 model) and differentiable.
    """
    kept_elements = chunk_elements or KEPT_ELEMENTS[states.device.type]
    chunk_elements = chunk_elements or CHUNK_ELEMENTS[states.device.type]
    options = _Options(logit_map, 1.0 / temperature, entropy, chunk_elements, kept_elements)

    def fused(states: Tensor) -> Scores:
        return _LinearScores.apply(states, head.weight, head.bias, targets, options)

    if _fusable(head, states):
        return call_as(head, fused, states)
    original = head.forward
    return call_as(head, lambda states: _score_chunks(original, states, targets, options), states)


def _fusable(head: nn.Module, states: Tensor) -> bool:
    return type(head) is nn.Linear and head.weight.dtype == states.dtype


def call_as(head: nn.Module, function: Callable[[Tensor], T], states: Tensor) -> T:
    """Run ``function(states)`` as the one forward of ``head``.

    So the module's hooks run exactly once, however many chunks there are. ZeRO-3 gathers the weights in such hooks, and
    data-parallel ranks, whose chunk counts differ, must gather equally often or wait for each other for ever.
    """
    original = head.forward
    head.forward = function  # type: ignore[method-assign]
    try:
        result: T = head(states)
        return result
    finally:
        head.forward = original  # type: ignore[method-assign]


@dataclass(frozen=True)
class _Options:
    logit_map: LogitMap
    inverse_temperature: float
    entropy: bool
    chunk_elements: int
    kept_elements: int

    def rows(self, vocabulary: int) -> int:
        return max(1, self.chunk_elements // vocabulary)

    def kept_rows(self, vocabulary: int, count: int) -> int:
        """How many of ``count`` rows are kept: all of them, or whole chunks from the first on."""
        rows = self.kept_elements // vocabulary
        return count if rows >= count else rows - rows % self.rows(vocabulary)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The type to compute in: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


# Any head -------------------------------------------------------------------------------------------------------------


def _score_chunks(forward: Callable[[Tensor], Tensor], states: Tensor, targets: Tensor, options: _Options) -> Scores:
    """For heads that are more than a matrix (adapters, quantised or split weights): autograd through each chunk."""

    def score(states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = options.logit_map.apply(forward(states))
        log_p = torch.log_softmax(logits * options.inverse_temperature, dim=-1)
        chosen = log_p.gather(1, targets[:, None]).squeeze(1)
        return chosen, -(log_p.exp() * log_p).sum(dim=1) if options.entropy else chosen.new_zeros(0)

    with torch.no_grad():
        vocabulary = forward(states[:0]).shape[1]
    rows = options.rows(vocabulary)
    pieces = list(zip(states.split(rows), targets.split(rows), strict=True))
    if len(pieces) > 1 and torch.is_grad_enabled():
        scored = [checkpoint(score, *piece, use_reentrant=False) for piece in pieces]
    else:
        scored = [score(*piece) for piece in pieces]
    log_probs, entropies = (torch.cat(column) for column in zip(*scored, strict=True))
    return log_probs, entropies if options.entropy else None


# A plain linear head --------------------------------------------------------------------------------------------------


class _LinearScores(torch.autograd.Function):
    """states (M, H), weight (V, H), bias (V,) or None → log-probabilities (M,) and entropies (M,) or None.

    Works in one buffer of a chunk's logits and adds the chunks' weight gradients in place, which costs less time and
    memory than autograd's own accounting over the chunks.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, options: _Options
    ) -> Scores:
        count = len(states)
        log_probs = states.new_empty(count, dtype=_wide(states.dtype))
        normaliser = torch.empty_like(log_probs)
        entropies = torch.empty_like(log_probs) if options.entropy else None
        keep = options.kept_rows(len(weight), count) if ctx.needs_input_grad[0] else 0
        kept = states.new_empty(keep, len(weight), dtype=log_probs.dtype)
        for part, logits in _each_chunk(states, weight, bias, options, kept):
            chosen = logits.gather(1, targets[part, None]).squeeze(1)
            top = logits.amax(dim=1)
            logits.sub_(top[:, None])
            p = logits.exp() if options.entropy or part.stop <= keep else logits.exp_()
            total = p.sum(dim=1)
            normaliser[part] = total.log().add_(top)
            log_probs[part] = chosen - normaliser[part]
            if entropies is not None:
                entropies[part] = total.log() - torch.linalg.vecdot(p, logits) / total
            if part.stop <= keep:
                logits.sub_(total.log()[:, None])
        ctx.save_for_backward(states, weight, bias, targets, normaliser, entropies, kept)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return log_probs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, entropy_grad: Tensor | None) -> tuple[Tensor | None, ...]:
        states, weight, bias, targets, normaliser, entropies, kept = ctx.saved_tensors
        options: _Options = ctx.options
        need_states, need_weight, need_bias = ctx.needs_input_grad[:3]
        wide = normaliser.dtype
        grad = torch.zeros_like(normaliser) if grad is None else grad
        grad_states = torch.zeros_like(states) if need_states else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if need_bias else None
        cap = options.logit_map.cap
        for part, log_p in _each_log_softmax(states, weight, bias, options, kept, normaliser):
            slope = None if cap is None else _slope(log_p + normaliser[part, None], cap, options)
            # d log p(y) / d logit_j = [j = y] − p_j ; d entropy / d logit_j = −p_j (log p_j + entropy).
            # Row factors that all j share are put on the (rows, H) side of the products, not on the logits.
            if entropy_grad is None:
                direction = log_p.exp_()
                direction[_index(direction), targets[part]] -= 1
                factor = -grad[part]
            else:
                p = log_p.exp()
                direction = log_p.add_(entropies[part, None]).mul_(entropy_grad[part, None]).add_(grad[part, None])
                direction.mul_(p)
                direction[_index(direction), targets[part]] -= grad[part]
                factor = -torch.ones_like(grad[part])
            if slope is not None:
                direction.mul_(slope)
            factor = factor * (options.logit_map.scale * options.inverse_temperature)
            narrow = direction.to(states.dtype)
            if grad_states is not None:
                grad_states[part] = torch.mm(narrow, weight) * factor[:, None]
            if grad_weight is not None:
                _add_product(grad_weight, narrow.t(), (states[part] * factor[:, None]).to(states.dtype))
            if grad_bias is not None:
                grad_bias += factor @ direction
        return (
            grad_states,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
        )


def _each_log_softmax(
    states: Tensor, weight: Tensor, bias: Tensor | None, options: _Options, kept: Tensor, normaliser: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """Yields (slice of rows, their log softmax): first the ``kept`` ones, then those that are computed again."""
    for start in range(0, len(kept), options.rows(len(weight))):
        part = slice(start, min(start + options.rows(len(weight)), len(kept)))
        yield part, kept[part]
    for part, logits in _each_chunk(states, weight, bias, options, kept, start=len(kept)):
        yield part, logits.sub_(normaliser[part, None])


def _each_chunk(
    states: Tensor, weight: Tensor, bias: Tensor | None, options: _Options, kept: Tensor, start: int = 0
) -> Iterator[tuple[slice, Tensor]]:
    """Yields (slice of rows, their final logits / temperature) from row ``start`` on.

    Rows that ``kept`` has are written there, the others to one buffer that is written over each time.
    """
    rows = options.rows(len(weight))
    buffer = kept.new_empty(max(0, min(rows, len(states) - len(kept))), len(weight))
    for at in range(start, len(states), rows):
        part = slice(at, min(at + rows, len(states)))
        logits = kept[part] if part.stop <= len(kept) else buffer[: part.stop - part.start]
        if states.dtype == logits.dtype:
            torch.mm(states[part], weight.t(), out=logits)
        else:
            logits.copy_(torch.mm(states[part], weight.t()))
        if bias is not None:
            logits += bias
        scale, cap = options.logit_map.scale, options.logit_map.cap
        if cap is not None:
            logits.mul_(scale / cap).tanh_().mul_(cap * options.inverse_temperature)
        elif scale * options.inverse_temperature != 1:
            logits.mul_(scale * options.inverse_temperature)
        yield part, logits


def _slope(logits: Tensor, cap: float, options: _Options) -> Tensor:
    """Derivative of cap · tanh(x / cap), from its value."""
    return 1 - (logits / (cap * options.inverse_temperature)).square_()


def _index(x: Tensor) -> Tensor:
    return torch.arange(len(x), device=x.device)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b; half-precision factors are summed in the wider type of ``total``."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += torch.mm(a, b)
