"""Running a decoder over a batch: padded as it is, or packed into one row without padding.

Both return flat hidden states and ``slots``, which say where token [b, t] lies in them, so that what comes after does
not know the difference.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from openrlhf.models.attention import no_attention_mask
from openrlhf.types import Batch


class Hidden(NamedTuple):
    states: Tensor  # (N, H), the decoder's last hidden states
    slots: Tensor  # (B, T) int64, row of ``states`` of token [b, t]; meaningless on padding


def decode(decoder: nn.Module, batch: Batch, packed: bool) -> Hidden:
    """Hidden states of every attended token of ``batch``."""
    return _decode_packed(decoder, batch) if packed else _decode_padded(decoder, batch)


def _decode_padded(decoder: nn.Module, batch: Batch) -> Hidden:
    output = decoder(
        input_ids=batch.tokens,
        attention_mask=batch.attention_mask.long(),
        position_ids=positions(batch.attention_mask).clamp(min=0),
        use_cache=False,
    )
    slots = torch.arange(batch.tokens.numel(), device=batch.tokens.device).view(batch.tokens.shape)
    return Hidden(output.last_hidden_state.flatten(0, 1), slots)


def _decode_packed(decoder: nn.Module, batch: Batch) -> Hidden:
    """All rows after each other in one row of N tokens.

    Positions restart with each row and the attention functions get the borders as ``cu_seq_lens``. There must be no
    mask and no cache: with either, Transformers lets the rows see each other.
    """
    mask = batch.attention_mask
    borders = nn.functional.pad(batch.lengths.cumsum(0), (1, 0)).to(torch.int32)
    longest = int(batch.lengths.max())
    with no_attention_mask():
        output = decoder(
            input_ids=batch.tokens[mask][None],
            attention_mask=None,
            position_ids=positions(mask)[mask][None],
            use_cache=False,
            cu_seq_lens_q=borders,
            cu_seq_lens_k=borders,
            max_length_q=longest,
            max_length_k=longest,
        )
    slots = mask.flatten().cumsum(0).view(mask.shape) - 1
    return Hidden(output.last_hidden_state[0], slots)


def positions(attention_mask: Tensor) -> Tensor:
    """(B, T) int64: 0, 1, 2 … over the attended tokens of each row; −1 before the first."""
    return attention_mask.long().cumsum(dim=1) - 1


def predicted(batch: Batch) -> Tensor:
    """(B, T) bool: action tokens that have a token before them, the only ones a causal model speaks of."""
    mask = batch.attention_mask
    chosen = torch.zeros_like(mask)
    chosen[:, 1:] = batch.action_mask[:, 1:] & mask[:, 1:] & mask[:, :-1]
    return chosen


def before(hidden: Hidden, chosen: Tensor) -> Tensor:
    """(M, H): the state that each of the M chosen tokens was predicted from. Only here are tokens shifted."""
    return hidden.states[hidden.slots[:, :-1][chosen[:, 1:]]]


def spread(values: Tensor, chosen: Tensor) -> Tensor:
    """(M,) values of the chosen tokens → (B, T), zero elsewhere."""
    return torch.zeros(chosen.shape, dtype=values.dtype, device=values.device).masked_scatter(chosen, values)
