"""Reward model and critic: a decoder with one number per token on top."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from openrlhf.models.packing import before, decode, decode_ends, predicted_here, spread
from openrlhf.models.ring_attention import Ring, together
from openrlhf.types import Batch


class ScoreModel(nn.Module):
    """Wraps a Hugging Face sequence classifier with one label, ``hf``, whose head is ``hf.score`` (H → 1, no bias).

    ``prefix`` is the head's name in saved folders. ``mean`` and ``std`` are those of the training scores, kept in
    config.json. ``normalize`` applies them: to scores in ``eval`` mode only, since a reward model learns raw ones, and
    to values always, since a critic learns returns that are made of normalised scores. With a ``ring`` every forward
    is packed.
    """

    ring: Ring | None = None

    def __init__(self, hf: PreTrainedModel, prefix: str = "score", normalize: bool = False) -> None:
        super().__init__()
        self.hf = hf
        self.prefix = prefix
        self.normalize = normalize
        # Plain numbers: as buffers they would be rounded when the model is cast to bfloat16.
        stored = hf.config.to_dict()
        self.mean = float(stored.get("mean", 0.0))
        self.std = float(stored.get("std", 1.0))

    def forward(self, batch: Batch, what: Literal["scores", "values"] = "scores", packed: bool = False) -> Tensor:
        """``scores`` (B,): the head at the last attended token. ``values`` (B, T): the head at the token before each
        action token, that is the value of the state in which it was chosen; zero elsewhere. float32.

        A row without any attended token has no score; it reads another token's, or 0.
        """
        if what == "scores":
            states, here = decode_ends(self.hf.base_model, batch, packed, self.ring)
            scores = self._head(states, self.normalize and not self.training)
            return together(spread(scores, here), self.ring)
        hidden = decode(self.hf.base_model, batch, packed, self.ring)
        chosen = predicted_here(hidden, batch)
        return together(spread(self._head(before(hidden, chosen), self.normalize), chosen), self.ring)

    def set_statistics(self, mean: float, std: float) -> None:
        """Keep the mean and standard deviation of the scores; they are saved with the model."""
        self.mean, self.std = mean, std
        self.hf.config.mean, self.hf.config.std = mean, std

    def _head(self, states: Tensor, normalize: bool) -> Tensor:
        out = self.hf.get_submodule("score")(states).squeeze(-1)
        out = out.to(torch.promote_types(out.dtype, torch.float32))
        return (out - self.mean) / self.std if normalize else out


@torch.no_grad()
def init_head(head: nn.Module) -> None:
    """Draw the head's weight from a normal distribution with standard deviation 1 / (hidden + 1), on the CPU: the same
    on every device.

    The parameter is replaced: under ZeRO-3 the loaded one is sharded already and has no shape to draw into.
    """
    assert isinstance(head, nn.Linear)
    old = head.weight
    weight = torch.empty(head.out_features, head.in_features, dtype=old.dtype)
    head.weight = nn.Parameter(weight.normal_(mean=0.0, std=1 / (head.in_features + 1)).to(old.device))
