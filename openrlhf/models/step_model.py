"""A process reward model: a language model whose logits at a placeholder judge the step before it."""

from __future__ import annotations

import torch
from torch import Tensor

from openrlhf.models.causal_lm import CausalLM
from openrlhf.models.packing import decode
from openrlhf.models.ring_attention import together
from openrlhf.types import Batch


class StepModel(CausalLM):
    """The same weights as ``CausalLM``, read at the marked tokens instead of before them. Here nothing is shifted."""

    def forward(  # type: ignore[override]
        self, batch: Batch, tokens: tuple[int, ...] | None = None, packed: bool = False
    ) -> Tensor:
        """Log-probabilities (M, R) float32 at the M tokens of ``action_mask``, in row order: over the R ``tokens``
        alone, or over the whole vocabulary."""
        hidden = decode(self.hf.get_decoder(), batch, packed, self.ring)
        slots = hidden.slots[batch.action_mask]
        here = hidden.here(slots)
        logits = self.logit_map.apply(self.hf.get_output_embeddings()(hidden.states[slots[here]]))
        log_probs = torch.log_softmax(logits if tokens is None else logits[:, list(tokens)], dim=-1)
        every = log_probs.new_zeros(len(slots), log_probs.shape[1])
        return together(every.index_copy(0, here.nonzero().squeeze(1), log_probs), self.ring)
