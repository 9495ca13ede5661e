"""Mixtures of experts: how evenly their routers spread the tokens of each sample over the experts.

The load-balancing loss of Fedus et al. 2021 (arXiv:2101.03961, eq. 4–6) counts over a micro-batch, so that its size
would change the gradient. Counted over one sequence at a time (DeepSeek-V3, arXiv:2412.19437, section 2.1.2, eq. 17–20)
it is a mean over tokens like any other loss here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from openrlhf.models.ring_attention import Ring, together


class Balance(NamedTuple):
    """Of one forward of B rows."""

    elements: Tensor  # (B, T) float32, zero on padding; 1 · top_k where the experts share the tokens evenly
    attention_mask: Tensor  # (B, T) bool


@dataclass
class Record:
    """What the decoder inside ``model`` leaves here, forward by forward."""

    model: nn.Module
    balances: list[Balance] = field(default_factory=list)


_RECORD: ContextVar[Record | None] = ContextVar("record of routers", default=None)


@contextmanager
def routers_recorded(model: nn.Module) -> Iterator[list[Balance]]:
    """The balance of each forward of ``model`` inside, in order."""
    record = Record(model)
    token = _RECORD.set(record)
    try:
        yield record.balances
    finally:
        _RECORD.reset(token)


def record_of(decoder: nn.Module) -> Record | None:
    """The record that this decoder's routers belong in, if any."""
    record = _RECORD.get()
    return record if record is not None and any(module is decoder for module in record.model.modules()) else None


def balance(
    routers: Sequence[Tensor], top_k: int, slots: Tensor, here: Tensor, lengths: Tensor, ring: Ring | None
) -> Tensor:
    """E · Σ_e f_e(b) · p_e(t), mean over the layers, (B, T) float32; zero where ``here`` is false on every rank.

    f_e(b), without gradient, is the share of the ``lengths`` (B,) tokens of row b that have expert e among their
    ``top_k``; p_e(t) is the router's probability. ``routers``: each layer's logits (N, E); token [b, t] is row
    ``slots[b, t]`` of them where ``here`` (B, T).
    """
    rows, where = here.nonzero()[:, 0], slots[here]
    total = torch.zeros(len(where), device=slots.device)
    for logits in routers:
        p = logits.flatten(0, -2).float().softmax(dim=-1)[where]
        chosen = torch.zeros_like(p).scatter(1, p.detach().topk(top_k).indices, 1.0)
        counts = p.new_zeros(len(here), p.shape[1]).index_add(0, rows, chosen)
        if ring is not None:
            dist.all_reduce(counts, group=ring.group)
        shares = counts / lengths[:, None].clamp(min=1)
        total = total + p.shape[1] * torch.linalg.vecdot(shares[rows], p)
    elements = torch.zeros(here.shape, device=slots.device).masked_scatter(here, total / len(routers))
    return together(elements, ring)


def experts_per_token(decoder: nn.Module) -> int:
    """Raises ValueError for a family that is not trained with a load-balancing loss over softmax routers."""
    assert isinstance(decoder, PreTrainedModel)
    values = decoder.config.get_text_config().to_dict()
    if "router_aux_loss_coef" not in values or "num_experts_per_tok" not in values:
        raise ValueError(
            f"--aux_loss_coef balances experts, but a model of the family {values['model_type']} has none that learn "
            "by such a loss: leave it out"
        )
    return int(values["num_experts_per_tok"])
