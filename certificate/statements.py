"""What must not change a gradient, as checks in one process: each compares steps of a method on ragged examples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from certificate.engine import GradientEngine
from certificate.material import VOCABULARY, left_padded
from certificate.steps import WHOLE, Error, Outcome, Subject, largest_error, prepared_step
from openrlhf.backends.shared import SharedForward
from openrlhf.models.adapters import is_adapted
from openrlhf.models.causal_lm import CausalLM, TokenScores
from openrlhf.models.distill import Teaching
from openrlhf.models.packing import predicted, spread
from openrlhf.models.step_model import StepModel
from openrlhf.types import Batch


@dataclass(frozen=True)
class Statement:
    """``check(subject, seed)`` measures; None where it says nothing about that method."""

    text: str
    tolerance: float
    check: Callable[[Subject, int], Error | None]


def micro_batches(subject: Subject, seed: int) -> Error:
    batch = subject.method.examples(seed)
    parts = [subject.step(batch, micro, packed) for micro in (1, 2, 3, 8) for packed in (False, True)]
    return largest_error(subject.step(batch), *parts)


def token_budgets(subject: Subject, seed: int) -> Error:
    """Of rows of 3 to 20 tokens, 15 leaves some alone and 60 puts several together."""
    batch = subject.method.examples(seed)
    parts = [subject.step(batch, packed=packed, tokens=tokens) for tokens in (15, 60) for packed in (False, True)]
    return largest_error(subject.step(batch, micro=1), *parts)


def packing(subject: Subject, seed: int) -> Error:
    batch = subject.method.examples(seed)
    one_by_one = subject.step(batch, micro=1)
    return largest_error(one_by_one, subject.step(batch), subject.step(batch, packed=True))


def left_padding(subject: Subject, seed: int) -> Error:
    right = prepared(subject, seed)
    left = left_padded(right)
    return largest_error(train(subject, right), train(subject, left), train(subject, left, packed=True))


def chunked_head(subject: Subject, seed: int) -> Error | None:
    if not isinstance(subject.model, CausalLM) or isinstance(subject.model, StepModel):
        return None
    batch = subject.method.examples(seed)
    hf = subject.model.hf
    models = [CausalLM(hf, chunk_elements=rows * VOCABULARY) for rows in (1, 2, 5, 1000)]
    # Its log-probabilities before the step are its own, too.
    return largest_error(
        subject.step(batch, model=FullLogits(hf)), *(subject.step(batch, model=model) for model in models)
    )


def recomputation(subject: Subject, seed: int) -> Error:
    batch = subject.method.examples(seed)
    kept = [subject.step(batch, 2, packed) for packed in (False, True)]
    subject.model.hf.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        again = [subject.step(batch, 2, packed) for packed in (False, True)]
    finally:
        subject.model.hf.gradient_checkpointing_disable()
    return worst(*(largest_error(*both) for both in zip(kept, again, strict=True)))


def order(subject: Subject, seed: int) -> Error:
    batch, rows = subject.method.examples(seed), subject.method.rows
    examples = torch.randperm(len(batch) // rows, generator=torch.Generator().manual_seed(seed))
    mixed = batch.select((examples[:, None] * rows + torch.arange(rows)).flatten())
    parts = [subject.step(mixed, micro, packed) for micro in (2, WHOLE) for packed in (False, True)]
    return largest_error(subject.step(batch), *parts)


def same_start(subject: Subject, seed: int) -> Error | None:
    """What a run may take from its own model instead of asking another one, or twice."""
    batch = subject.method.examples(seed)
    if is_adapted(subject.model.hf) and subject.frozen is not None:
        shared = replace(subject, frozen=SharedForward(GradientEngine(subject.model)))
        return largest_error(subject.step(batch), shared.step(batch))
    if isinstance(subject.model, CausalLM) and batch.old_log_probs is not None:
        on_policy = prepare(subject, batch.fill(old_log_probs=torch.zeros_like(batch.old_log_probs)))
        return largest_error(train(subject, on_policy), train(subject, on_policy.fill(old_log_probs=None)))
    return None


def poison(subject: Subject, seed: int) -> Error:
    """Bitwise: both steps are cut alike."""
    clean = prepared(subject, seed)
    rubbish = poisoned(clean, subject.method.rows)
    return worst(
        *(
            largest_error(train(subject, clean, micro, packed), train(subject, rubbish, micro, packed))
            for micro in (2, WHOLE)
            for packed in (False, True)
        )
    )


STATEMENTS: dict[str, Statement] = {
    "I1": Statement("micro-batches of 1, 2, 3, 8 = the whole mini-batch", 1e-6, micro_batches),
    "I1, tokens": Statement("micro-batches of 15 and 60 tokens = one by one", 1e-6, token_budgets),
    "I3": Statement("packed, beginnings that rows share read once = padded = one by one", 1e-5, packing),
    "I3, left": Statement("padded on the left = on the right", 1e-5, left_padding),
    "I4": Statement("head in chunks of 1, 2, 5, 1000 tokens = softmax of full logits", 1e-5, chunked_head),
    "I5, recomputed": Statement("activations recomputed in the backward pass = kept", 1e-5, recomputation),
    "I6": Statement("the order of the examples changes nothing", 1e-6, order),
    "I7": Statement(
        "reference by switching the adapter off = a copy; π_old of an on-policy step = its own log-probs",
        1e-5,
        same_start,
    ),
    "I8": Statement("NaN in every masked slot changes no bit", 0.0, poison),
}


class FullLogits(nn.Module):
    """``CausalLM`` as its definition says: Transformers' logits of every token, then one softmax."""

    def __init__(self, hf: nn.Module) -> None:
        super().__init__()
        self.hf = hf

    def forward(
        self,
        batch: Batch,
        temperature: float = 1.0,
        entropy: bool = False,
        packed: bool = False,
        teaching: Teaching | None = None,
    ) -> TokenScores:
        chosen = predicted(batch)
        logits = self.hf(batch.tokens, attention_mask=batch.attention_mask.long(), use_cache=False).logits
        log_p = (logits[:, :-1][chosen[:, 1:]] / temperature).log_softmax(-1)
        log_probs = log_p.gather(1, batch.tokens[chosen][:, None]).squeeze(1)
        entropies = spread(-(log_p.exp() * log_p).sum(1), chosen) if entropy else None
        cross = None
        if teaching is not None:
            taught = (teaching.states @ teaching.weight.T).softmax(-1)
            cross = spread(-(taught * log_p).sum(1), chosen)
        return TokenScores(spread(log_probs, chosen), entropies, cross)


def prepared(subject: Subject, seed: int) -> Batch:
    return prepare(subject, subject.method.examples(seed))


def prepare(subject: Subject, batch: Batch) -> Batch:
    return subject.method.prepare(batch, GradientEngine(subject.model), subject.frozen, WHOLE, False)


def train(subject: Subject, batch: Batch, micro: int = WHOLE, packed: bool = False) -> Outcome:
    return prepared_step(subject.method, GradientEngine(subject.model), subject.frozen, batch, micro, packed)


def poisoned(batch: Batch, rows: int) -> Batch:
    """NaN where nothing is chosen, in what belongs to the row of an example that carries no loss; other padding."""
    rubbish: dict[str, Tensor] = {"tokens": batch.tokens.masked_fill(~batch.attention_mask, 5)}
    for name, values in batch.tensors().items():
        if not values.is_floating_point():
            continue
        if values.dim() == 2:
            rubbish[name] = values.masked_fill(~batch.action_mask, math.nan)
        elif rows > 1:
            rubbish[name] = values.masked_fill(torch.arange(len(batch)) % rows != 0, math.nan)
    return batch.fill(**rubbish)


def worst(*errors: Error) -> Error:
    return Error(max(e.gradient for e in errors), max(e.metrics for e in errors))
