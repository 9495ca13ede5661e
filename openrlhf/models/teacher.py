"""A frozen language model that a student learns from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openrlhf.models.causal_lm import CausalLM
from openrlhf.models.distill import Teaching
from openrlhf.models.head import call_as
from openrlhf.models.packing import before, decode, predicted_here
from openrlhf.models.ring_attention import Ring
from openrlhf.types import Batch


class Teacher(nn.Module):
    """Answers with what its distributions over the first ``vocabulary`` tokens are made of."""

    ring: Ring | None = None

    def __init__(self, model: CausalLM, vocabulary: int) -> None:
        """``vocabulary`` is how many token ids the tokenizer has: rows that only pad the head get no probability.

        Raises ValueError when the model's head is not a plain matrix.
        """
        super().__init__()
        self.hf = model.hf
        self.logit_map = model.logit_map
        self.vocabulary = vocabulary
        if type(self.hf.get_output_embeddings()) is not nn.Linear:
            raise ValueError("--teacher_model: its output head is not a plain matrix; choose another teacher")

    @torch.no_grad()
    def forward(self, batch: Batch, packed: bool = False) -> Teaching:
        """Teaching about the predicted action tokens of ``batch``, on a ring about this rank's, as the student's."""
        head = self.hf.get_output_embeddings()

        def weights(states: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
            # Where the weights are sharded they are whole only in here. A detached alias keeps them alive afterwards.
            bias = None if head.bias is None else head.bias.detach()[: self.vocabulary]
            return states, head.weight.detach()[: self.vocabulary], bias

        hidden = decode(self.hf.get_decoder(), batch, packed, self.ring)
        states = before(hidden, predicted_here(hidden, batch))
        return Teaching(*call_as(head, weights, states), self.logit_map)
