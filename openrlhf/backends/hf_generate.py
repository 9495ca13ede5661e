"""Transformers as a rollout engine: a batched decode loop over the actor's own module, in this process.

The module is shared with training, so new weights are there as soon as the optimizer has stepped. Each distinct prompt
is read once and its cache handed to all of its samples; rows that have ended leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from openrlhf.rollout.engine import Completion, SamplingParams
from openrlhf.rollout.stop_strings import Decode, ends

ROWS_AT_ONCE = 256  # bounds the key-value cache
Uniform = Callable[[list[int], int], Tensor]  # rows, position of the token → (rows, 1) float64 in [0, 1) to draw it by


class HFGenerate:
    """``model`` is a Hugging Face causal LM. ``generate`` leaves its training mode as it was.

    ``decode`` is for stop strings, which are refused without it.
    """

    def __init__(self, model: nn.Module, decode: Decode | None = None) -> None:
        self.model = model
        self.decode = decode
        self.version = 0

    @torch.no_grad()
    def generate(self, prompts: list[list[int]], params: SamplingParams | Sequence[SamplingParams]) -> list[Completion]:
        training = self.model.training
        self.model.eval()
        try:
            if isinstance(params, SamplingParams):
                return self._alike(prompts, params)
            return self._each(prompts, params)
        finally:
            self.model.train(training)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """The module is the actor's: its weights are here already, only their version changes."""
        self.version = version

    def sleep(self) -> None:
        """Nothing: the engine holds no memory between calls."""

    def wake(self) -> None:
        """Nothing, as ``sleep``."""

    def _alike(self, prompts: list[list[int]], params: SamplingParams) -> list[Completion]:
        """All prompts draw from one generator, a token of each in turn."""
        generator = seeded(params.seed, self._device)

        def uniform(rows: list[int], position: int) -> Tensor:
            return torch.rand(len(rows), 1, dtype=torch.float64, device=generator.device, generator=generator)

        out: list[Completion] = []
        for start in range(0, len(prompts), ROWS_AT_ONCE):
            part = prompts[start : start + ROWS_AT_ONCE]
            out += self._decode(part, params, [params.max_new_tokens] * len(part), uniform)
        return out

    def _each(self, prompts: list[list[int]], params: Sequence[SamplingParams]) -> list[Completion]:
        """Each prompt draws from a generator of its own. Those that differ in seed and length alone go together."""
        alike: dict[SamplingParams, list[int]] = {}
        for place, own in enumerate(params):
            alike.setdefault(replace(own, seed=None, max_new_tokens=0), []).append(place)
        out: dict[int, Completion] = {}
        for common, places in alike.items():
            for start in range(0, len(places), ROWS_AT_ONCE):
                part = places[start : start + ROWS_AT_ONCE]
                limits = [params[place].max_new_tokens for place in part]
                uniform = own_numbers([params[place] for place in part], self._device)
                done = self._decode([prompts[place] for place in part], common, limits, uniform)
                out |= dict(zip(part, done, strict=True))
        return [out[place] for place in range(len(prompts))]

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _decode(
        self, prompts: list[list[int]], params: SamplingParams, limits: list[int], uniform: Uniform
    ) -> list[Completion]:
        """``limits``: the largest number of tokens of each row, for that of ``params``."""
        device = self._device
        left = torch.tensor(limits, device=device)
        out = [Completion([], [], truncated=True, weight_versions=[]) for _ in prompts]
        logits, cache, mask = self._read_prompts(prompts, device)
        rows = list(range(len(prompts)))  # which completion each row of the cache belongs to
        stops = torch.tensor(params.stop_token_ids, dtype=torch.int64, device=device)
        penalty = params.repetition_penalty
        seen = seen_tokens(prompts, logits) if penalty != 1 else None
        for position in range(max(limits)):
            if seen is not None:
                logits = penalize(logits, seen, penalty)
            tokens, log_probs = sample(logits, params, uniform(rows, position))
            for row, token, log_prob in zip(rows, tokens.tolist(), log_probs.tolist(), strict=True):
                out[row].token_ids.append(token)
                out[row].log_probs.append(log_prob)
                out[row].weight_versions.append(self.version)
            going = ~torch.isin(tokens, stops)
            if params.stop_strings:
                going &= ~self._said([out[row].token_ids for row in rows], params.stop_strings).to(device)
            for row, goes in zip(rows, going.tolist(), strict=True):
                out[row].truncated = goes
            going &= left > position + 1
            if not going.any():
                break
            if not going.all():
                keep = going.nonzero().squeeze(1)
                rows = [rows[i] for i in keep.tolist()]
                tokens, mask, left = tokens[keep], mask[keep], left[keep]
                seen = seen[keep] if seen is not None else None
                cache.batch_select_indices(keep)
            if seen is not None:
                seen.scatter_(1, tokens[:, None], True)
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            logits = self._forward(tokens[:, None], mask, cache)
        return out

    def _said(self, answers: list[list[int]], stop_strings: tuple[str, ...]) -> Tensor:
        """(B,) bool: which answers have come to a stop string."""
        if self.decode is None:
            raise ValueError("Stop strings are texts, and this engine was given no tokenizer to read with.")
        return torch.tensor([ends(answer, stop_strings, self.decode) for answer in answers])

    def _read_prompts(self, prompts: list[list[int]], device: torch.device) -> tuple[Tensor, DynamicCache, Tensor]:
        """One forward over the distinct prompts, padded on the left, then one row of it for each prompt asked."""
        distinct = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
        width = max(len(prompt) for prompt in distinct)
        tokens = torch.zeros(len(distinct), width, dtype=torch.int64)
        mask = torch.zeros(len(distinct), width, dtype=torch.int64)
        for i, prompt in enumerate(distinct):
            tokens[i, width - len(prompt) :] = torch.tensor(prompt)
            mask[i, width - len(prompt) :] = 1
        cache = DynamicCache()
        tokens, mask = tokens.to(device), mask.to(device)
        logits = self._forward(tokens, mask, cache)
        place = {prompt: i for i, prompt in enumerate(distinct)}
        index = torch.tensor([place[tuple(prompt)] for prompt in prompts], device=device)
        cache.batch_select_indices(index)
        return logits[index], cache, mask[index]

    def _forward(self, tokens: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
        """Float32 logits (B, V) of the next token."""
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        out = self.model(
            tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1].float()


def seen_tokens(prompts: list[list[int]], logits: Tensor) -> Tensor:
    """(B, V) bool, of the shape of ``logits`` and on its device: which tokens a prompt holds."""
    seen = torch.zeros(logits.shape, dtype=torch.bool)
    for row, prompt in zip(seen, prompts, strict=True):
        row[prompt] = True
    return seen.to(logits.device)


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """The logits (B, V) of ``seen`` tokens divided by ``penalty`` (arXiv:1909.05858, section 4.1).

    Negative ones are multiplied instead, as in Transformers and vLLM: dividing them would make a token likelier.
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def seeded(seed: int | None, device: torch.device | str = "cpu") -> torch.Generator:
    generator = torch.Generator(device=device)
    generator.manual_seed(seed) if seed is not None else generator.seed()
    return generator


def own_numbers(params: Sequence[SamplingParams], device: torch.device) -> Uniform:
    """Numbers of row i by the seed of ``params[i]``, whatever rows are beside it."""
    table = torch.zeros(len(params), max(own.max_new_tokens for own in params), dtype=torch.float64)
    for row, own in zip(table, params, strict=True):
        row[: own.max_new_tokens].uniform_(generator=seeded(own.seed))
    table = table.to(device)
    return lambda rows, position: table[rows, position, None]


def sample(logits: Tensor, params: SamplingParams, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (B,), drawn by ``uniform`` (B, 1), and their log-probs (B,) under softmax(logits / temperature), before
    the cut at ``top_p``. Raises ValueError for logits that are no numbers."""
    log_probs = torch.log_softmax(logits / (params.temperature or 1.0), dim=-1)
    if log_probs[:, 0].isnan().any():
        raise ValueError("the model that samples gives NaN instead of logits: its weights hold NaN or infinity")
    if params.temperature == 0:
        tokens = log_probs.argmax(dim=-1)
    else:
        allowed = top_p_cut(log_probs, params.top_p) if params.top_p < 1 else log_probs
        tokens = draw(allowed, uniform)
    return tokens, log_probs.gather(1, tokens[:, None]).squeeze(1)


def draw(log_probs: Tensor, uniform: Tensor) -> Tensor:
    """(B, V) log-probs, which need not sum to 1 → (B,) tokens, by inverting the cumulated probabilities.

    One random number a row: one for each entry, as in ``torch.multinomial``, costs more than a tiny model's forward.
    Float64, so that rare tokens keep their probability at any V.
    """
    cumulated = log_probs.exp().cumsum(dim=-1, dtype=torch.float64)
    return torch.searchsorted(cumulated, uniform * cumulated[:, -1:], right=True).squeeze(1)


def top_p_cut(log_probs: Tensor, top_p: float) -> Tensor:
    """−∞ outside the smallest set of tokens whose probability reaches ``top_p`` (arXiv:1904.09751)."""
    ordered, index = log_probs.softmax(dim=-1).sort(dim=-1, descending=True)
    outside = ordered.cumsum(dim=-1) - ordered >= top_p
    return log_probs.masked_fill(torch.zeros_like(outside).scatter(1, index, outside), -torch.inf)
