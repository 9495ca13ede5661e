"""From hidden states to log-probabilities, forward and backward: ours in chunks, and over the whole logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.gate import Gate

Score = Callable[[nn.Linear, Tensor, Tensor], Tensor]


def ours(gate: Gate, vocabulary: int, tokens: int, hidden: int) -> None:
    from openrlhf.models.head import LogitMap, score_tokens

    def score(head: nn.Linear, states: Tensor, targets: Tensor) -> Tensor:
        return score_tokens(head, states, targets, logit_map=LogitMap(), temperature=1.0, entropy=False)[0]

    run(gate, vocabulary, tokens, hidden, score)


def full(gate: Gate, vocabulary: int, tokens: int, hidden: int) -> None:
    def score(head: nn.Linear, states: Tensor, targets: Tensor) -> Tensor:
        return torch.log_softmax(head(states), dim=-1).gather(1, targets[:, None]).squeeze(1)

    run(gate, vocabulary, tokens, hidden, score)


def run(gate: Gate, vocabulary: int, tokens: int, hidden: int, score: Score) -> None:
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(hidden, vocabulary, bias=False)
    head.weight.data.normal_(std=0.02, generator=generator)
    while gate.opens():
        states = torch.randn(tokens, hidden, generator=generator).requires_grad_()
        targets = torch.randint(vocabulary, (tokens,), generator=generator)
        loss = -score(head, states, targets).mean()
        loss.backward()
        assert states.grad is not None and head.weight.grad is not None
        gate.record(loss=loss.item(), states_gradient=states.grad.norm().item(), weight=head.weight.grad.norm().item())
        head.weight.grad = None
