"""A moving average of the trained weights: what ``--enable_ema`` saves in place of the weights of the last step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from openrlhf.backends.pieces import Piece, load_weights, save_weights


class Average:
    """Of the elements that this process steps, in float32 on the CPU. ``weights`` are the same pieces in every call."""

    def __init__(self, beta: float, weights: Sequence[Piece]) -> None:
        """It begins at the weights as they are."""
        self.beta = beta
        self.pieces = [
            replace(piece, flat=piece.of(piece.flat).to("cpu", torch.float32, copy=True), offset=0) for piece in weights
        ]

    @torch.no_grad()
    def step(self, weights: Sequence[Piece]) -> None:
        """average ← β · average + (1 − β) · weight, after an optimizer step."""
        for own, piece in zip(self.pieces, weights, strict=True):
            own.flat.lerp_(piece.of(piece.flat).to("cpu", torch.float32), 1 - self.beta)

    @contextmanager
    def in_place_of(self, weights: Sequence[Piece]) -> Iterator[None]:
        """Inside, the weights are the average; afterwards they are back, bit for bit."""
        kept = [piece.of(piece.flat).to("cpu", copy=True) for piece in weights]
        try:
            for own, piece in zip(self.pieces, weights, strict=True):
                piece.of(piece.flat).copy_(own.flat)
            yield
        finally:
            for before, piece in zip(kept, weights, strict=True):
                piece.of(piece.flat).copy_(before)

    def state(self) -> dict[str, Any]:
        return save_weights(self.pieces)

    def load_state(self, saved: Sequence[Mapping[str, Any]]) -> None:
        """From the states of all processes that saved. Raises ValueError when they are of another model."""
        load_weights(self.pieces, saved)
