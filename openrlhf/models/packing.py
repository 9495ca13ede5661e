"""Running a decoder over a batch: padded as it is, packed into one row without padding, or a slice of such a row.

Packed, a row does not repeat what it begins with as the row before it does, the prompt of a pair or a group for one:
its tokens attend to those of that row. Nothing else tells the difference: the gradients of all rows add up there.

All return flat hidden states and ``slots``, which say where token [b, t] lies in them, so that what comes after does
not know the difference. On a ring a rank has the states of its own slice only; results are put together at the end.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from openrlhf.models.attention import NAME, no_attention_mask
from openrlhf.models.experts import Balance, balance, experts_per_token, record_of
from openrlhf.models.ring_attention import Ring, cut
from openrlhf.models.row_ends import Ends, last_layer, only_at
from openrlhf.types import Batch

Options = dict[str, Any]  # further arguments of the decoder

LEAST_SHARED = 1 / 16  # of a row; for less, gathering keys is not worth it


class Hidden(NamedTuple):
    states: Tensor  # (N, H), the decoder's last hidden states
    slots: Tensor  # (B, T) int64, row of ``states`` of token [b, t], out of range when another rank of the ring has it

    def here(self, slots: Tensor) -> Tensor:
        """Which of these ``slots`` are rows of ``states``: all, unless there is a ring."""
        return (slots >= 0) & (slots < len(self.states))


def decode(decoder: nn.Module, batch: Batch, packed: bool, ring: Ring | None = None) -> Hidden:
    """Hidden states of every attended token of ``batch``, or of this rank's share of them."""
    record = record_of(decoder)
    options: Options = {}
    if record is not None:
        top_k = experts_per_token(decoder)
        options["output_router_logits"] = True
    if ring is not None:
        output, slots = _decode_slice(decoder, batch, ring, options)
    else:
        output, slots = (_decode_packed if packed else _decode_padded)(decoder, batch, options)
    hidden = Hidden(output.last_hidden_state.flatten(0, 1), slots)
    if record is not None:
        mask = batch.attention_mask
        elements = balance(output.router_logits, top_k, slots, mask & hidden.here(slots), batch.lengths, ring)
        record.balances.append(Balance(elements, mask))
    return hidden


def decode_ends(decoder: nn.Module, batch: Batch, packed: bool, ring: Ring | None = None) -> tuple[Tensor, Tensor]:
    """The state at the last attended token of each row, (M, H), and which rows have one here, (B,) bool."""
    mask = batch.attention_mask
    columns = torch.arange(mask.shape[1], device=mask.device).mul(mask).argmax(1)[:, None]
    layer = None if ring is not None or record_of(decoder) is not None else last_layer(decoder)
    if layer is None:
        hidden = decode(decoder, batch, packed, ring)
        slots = hidden.slots.gather(1, columns).squeeze(1)
        here = hidden.here(slots)
        return hidden.states[slots[here]], here
    if packed:
        here = mask.any(dim=1)
        slots = _pack(decoder, batch).slots.gather(1, columns)[here].T
        ends = Ends(torch.zeros_like(slots), slots, _borders(here))
    else:
        here = torch.ones_like(mask[:, 0])
        ends = Ends(torch.arange(len(mask), device=mask.device)[:, None], columns)
    with only_at(layer, ends):
        output, _ = (_decode_packed if packed else _decode_padded)(decoder, batch, {})
    return output.last_hidden_state.flatten(0, 1), here


def _decode_padded(decoder: nn.Module, batch: Batch, options: Options) -> tuple[Any, Tensor]:
    output = decoder(
        input_ids=batch.tokens,
        attention_mask=batch.attention_mask.long(),
        position_ids=positions(batch.attention_mask).clamp(min=0),
        use_cache=False,
        **options,
    )
    slots = torch.arange(batch.tokens.numel(), device=batch.tokens.device).view(batch.tokens.shape)
    return output, slots


class _Packed(NamedTuple):
    kept: Tensor  # (B, T) bool, tokens that are in the packed row
    slots: Tensor  # (B, T) int64, where each token is in it, or the one that stands for it
    shared: bool  # whether any token stands for another


def _pack(decoder: nn.Module, batch: Batch) -> _Packed:
    assert isinstance(decoder, PreTrainedModel)
    mask = batch.attention_mask
    first = _shared_tokens(batch) if decoder.config._attn_implementation == NAME else torch.zeros_like(batch.lengths)
    kept = mask & (torch.arange(mask.shape[1], device=mask.device) >= first[:, None])
    slots = _packed_slots(kept)
    if not first.any():
        return _Packed(kept, slots, False)
    owner = torch.arange(len(mask), device=mask.device)[:, None].where(kept, 0).cummax(dim=0).values
    return _Packed(kept, slots.gather(0, owner), True)


def _shared_tokens(batch: Batch) -> Tensor:
    """(B,) int64: how many tokens a row begins with that the row before begins with, too. Never a whole row."""
    tokens, mask = batch.tokens, batch.attention_mask
    same = (tokens[1:] == tokens[:-1]) & mask[1:] & mask[:-1]
    count = torch.minimum(same.long().cumprod(dim=1).sum(dim=1), batch.lengths[1:] - 1).clamp(min=0)
    return nn.functional.pad(count.where(count >= LEAST_SHARED * batch.lengths[1:], 0), (1, 0))


def _decode_packed(decoder: nn.Module, batch: Batch, options: Options) -> tuple[Any, Tensor]:
    """All rows after each other in one row of N tokens; positions restart with each row."""
    mask, (kept, slots, shared) = batch.attention_mask, _pack(decoder, batch)
    each = kept.sum(dim=1), batch.lengths
    borders = tuple(map(_borders, each))
    longest = tuple(int(n.max()) for n in each)
    if shared:
        options = {**options, "key_slots": slots[mask]}
    return _decode_row(decoder, batch.tokens[kept], positions(mask)[kept], borders, longest, options), slots


def _borders(lengths: Tensor) -> Tensor:
    return nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


def _decode_slice(decoder: nn.Module, batch: Batch, ring: Ring, options: Options) -> tuple[Any, Tensor]:
    """This rank's slice of the packed row; a sample of padding at the end makes the row divide evenly."""
    mask, lengths = batch.attention_mask, batch.lengths.tolist()
    padding = -sum(lengths) % ring.size
    part = cut([*lengths, padding], ring)
    mine = slice(part.start, part.start + part.size)
    tokens = nn.functional.pad(batch.tokens[mask], (0, padding))[mine]
    position = torch.cat([positions(mask)[mask], torch.arange(padding, device=mask.device)])[mine]
    each = (part.lengths, part.key_lengths)
    borders = tuple(torch.tensor([0, *n], device=mask.device).cumsum(0).to(torch.int32) for n in each)
    options = {**options, "ring_slice": part}
    output = _decode_row(decoder, tokens, position, borders, (max(each[0]), max(each[1])), options)
    return output, _packed_slots(mask) - part.start


def _decode_row(
    decoder: nn.Module,
    tokens: Tensor,
    position: Tensor,
    borders: tuple[Tensor, ...],
    longest: tuple[int, ...],
    options: Options,
) -> Any:
    """N tokens as one row. The attention functions get the borders of queries and keys as ``cu_seq_lens``. There
    must be no mask and no cache: with either, Transformers lets the samples see each other."""
    with no_attention_mask():
        return decoder(
            input_ids=tokens[None],
            attention_mask=None,
            position_ids=position[None],
            use_cache=False,
            cu_seq_lens_q=borders[0],
            cu_seq_lens_k=borders[1],
            max_length_q=longest[0],
            max_length_k=longest[1],
            **options,
        )


def _packed_slots(mask: Tensor) -> Tensor:
    return mask.flatten().cumsum(0).view(mask.shape) - 1


def positions(attention_mask: Tensor) -> Tensor:
    """(B, T) int64: 0, 1, 2 … over the attended tokens of each row; −1 before the first."""
    return attention_mask.long().cumsum(dim=1) - 1


def predicted(batch: Batch) -> Tensor:
    """(B, T) bool: action tokens that have a token before them, the only ones a causal model speaks of."""
    mask = batch.attention_mask
    chosen = torch.zeros_like(mask)
    chosen[:, 1:] = batch.action_mask[:, 1:] & mask[:, 1:] & mask[:, :-1]
    return chosen


def predicted_here(hidden: Hidden, batch: Batch) -> Tensor:
    """(B, T) bool: the predicted tokens whose prediction starts from a state of this rank; all without a ring."""
    chosen = predicted(batch)
    chosen[:, 1:] &= hidden.here(hidden.slots[:, :-1])
    return chosen


def before(hidden: Hidden, chosen: Tensor) -> Tensor:
    """(M, H): the state that each of the M chosen tokens was predicted from. Only here are tokens shifted."""
    return hidden.states[hidden.slots[:, :-1][chosen[:, 1:]]]


def spread(values: Tensor, chosen: Tensor) -> Tensor:
    """(M,) values of the chosen tokens → the shape of ``chosen``, zero elsewhere."""
    return torch.zeros(chosen.shape, dtype=values.dtype, device=values.device).masked_scatter(chosen, values)
