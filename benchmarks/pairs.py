"""Prompts with two answers each, for the preference methods: random tokens, the same at every call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.material import LENGTHS, VOCABULARY

PAIRS = 8  # in a batch
PROMPT = 64  # tokens
END = VOCABULARY  # what every answer ends in


@dataclass(frozen=True)
class Pair:
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def rows(self) -> tuple[list[int], list[int]]:
        """Prompt and answer as one, chosen first."""
        return self.prompt + self.chosen, self.prompt + self.rejected


def pairs(lengths: str, count: int) -> list[Pair]:
    """``lengths`` names the lengths of the answers, see ``material.LENGTHS``."""
    generator = torch.Generator().manual_seed(0)

    def words(size: int) -> list[int]:
        return torch.randint(1, VOCABULARY, (size,), generator=generator).tolist()

    sizes = LENGTHS[lengths](2 * count)
    return [
        Pair(words(PROMPT), [*words(sizes[i] - 1), END], [*words(sizes[i + 1] - 1), END])
        for i in range(0, 2 * count, 2)
    ]


def text(tokens: list[int]) -> str:
    """What the tokenizer of ``write_model`` reads as ``tokens``, without the end: TRL adds that one itself."""
    return " ".join(f"w{token}" for token in tokens if token != END)


def fill(lengths: str, count: int) -> float:
    """Share of real tokens in batches of chosen and rejected rows padded together."""
    every = [row for pair in pairs(lengths, count) for row in pair.rows]
    batches = [every[i : i + 2 * PAIRS] for i in range(0, len(every), 2 * PAIRS)]
    return sum(map(len, every)) / sum(len(batch) * max(map(len, batch)) for batch in batches)


def answer_log_probs(network: torch.nn.Module, tokens: Tensor, mask: Tensor, prompt: int = PROMPT) -> Tensor:
    """Σ log π of each row's answer, from full logits, as one writes it by hand. (B,)"""
    logits = network(input_ids=tokens, attention_mask=mask, use_cache=False).logits[:, prompt - 1 : -1]
    chosen = logits.log_softmax(-1).gather(-1, tokens[:, prompt:, None]).squeeze(-1)
    return (chosen * mask[:, prompt:]).sum(dim=1)
