"""The state of an optimizer by the names of the weights, however a backend cuts and flattens them.

A *piece* is a run of elements of one weight, with the place where the backend keeps it in float32. A process saves its
pieces and each process fills its own from everybody's, so what one number of processes wrote, another can load, at
another ZeRO stage too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """Elements ``start`` … ``start + size`` of a weight of ``whole`` elements, which ``flat``, one of the optimizer's
    own parameters, holds from ``offset`` on."""

    name: str
    whole: int
    start: int
    size: int
    flat: Tensor
    offset: int

    def of(self, tensor: Tensor) -> Tensor:
        """The same elements of a tensor shaped like ``flat``: the weight itself, or a moment."""
        return tensor.detach().view(-1).narrow(0, self.offset, self.size)


def whole_weights(parameters: Iterable[tuple[str, Tensor]]) -> list[Piece]:
    """Weights that the optimizer holds as they are."""
    return [Piece(name, p.numel(), 0, p.numel(), p, 0) for name, p in parameters if p.requires_grad]


def save_pieces(pieces: Sequence[Piece], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Weight, moments and step count of each piece, copied to the CPU. A weight without a gradient so far has none."""
    return {piece.name: _saved(piece, optimizer.state.get(piece.flat, {})) for piece in pieces}


def save_weights(pieces: Sequence[Piece]) -> dict[str, Any]:
    """The weights alone, as ``save_pieces`` has them."""
    return {piece.name: _saved(piece, {}) for piece in pieces}


def _saved(piece: Piece, state: Mapping[str, Any]) -> dict[str, Any]:
    moments = {key: value for key, value in state.items() if key != "step"}
    return {
        "whole": piece.whole,
        "start": piece.start,
        "step": float(state["step"]) if state else 0.0,
        "weight": piece.of(piece.flat).to("cpu", copy=True),
        "moments": {key: piece.of(value).to("cpu", copy=True) for key, value in moments.items()},
    }


@torch.no_grad()
def load_pieces(pieces: Sequence[Piece], optimizer: torch.optim.Optimizer, saved: Sequence[Mapping[str, Any]]) -> None:
    """Fill ``pieces`` and the optimizer's state from what processes of any number saved.

    Raises ValueError when a weight is missing or has another size.
    """
    optimizer.state.clear()
    load_weights(pieces, saved)
    for piece in pieces:
        for part in (part[piece.name] for part in saved if piece.name in part):
            _load_moments(piece, part, optimizer)


@torch.no_grad()
def load_weights(pieces: Sequence[Piece], saved: Sequence[Mapping[str, Any]]) -> None:
    """The weights of ``load_pieces`` alone. Raises ValueError as that does."""
    for piece in pieces:
        parts = [part[piece.name] for part in saved if piece.name in part]
        if not parts:
            raise ValueError(f"it has no weight {piece.name}")
        if parts[0]["whole"] != piece.whole:
            raise ValueError(f"its {piece.name} has {parts[0]['whole']} elements and not {piece.whole}")
        if sum(_load_weight(piece, part) for part in parts) < piece.size:
            raise ValueError(f"a part of its {piece.name} is missing")


def _load_weight(piece: Piece, part: Mapping[str, Any]) -> int:
    """Copy what the two have in common; the number of its elements."""
    target, source = _common(piece, part)
    piece.of(piece.flat)[target].copy_(part["weight"][source])
    return target.stop - target.start


def _load_moments(piece: Piece, part: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    target, source = _common(piece, part)
    if not part["moments"] or target.start == target.stop:
        return
    state = optimizer.state[piece.flat]
    for key, moment in part["moments"].items():
        if key not in state:
            state[key] = torch.zeros_like(piece.flat)
        piece.of(state[key])[target].copy_(moment[source])
    # As the fused AdamW makes it: on the device of the weight.
    state["step"] = torch.tensor(part["step"], dtype=torch.float32, device=piece.flat.device)


def _common(piece: Piece, part: Mapping[str, Any]) -> tuple[slice, slice]:
    """Where the elements that the two have in common are in the piece, and where in the part."""
    first = max(piece.start, part["start"])
    last = max(first, min(piece.start + piece.size, part["start"] + part["weight"].numel()))
    return slice(first - piece.start, last - piece.start), slice(first - part["start"], last - part["start"])


def load_schedule(scheduler: Any, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Set the schedule back to where it was, and with it the learning rate of the next step."""
    scheduler.load_state_dict(dict(state))
    for group, lr in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
        group["lr"] = lr
