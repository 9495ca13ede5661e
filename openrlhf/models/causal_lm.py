"""A language model that answers with the log-probability of every action token."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from openrlhf.models.distill import Teaching, distill_tokens
from openrlhf.models.head import LogitMap, score_tokens
from openrlhf.models.packing import before, decode, predicted_here, spread
from openrlhf.models.ring_attention import Ring, together
from openrlhf.types import Batch


class TokenScores(NamedTuple):
    """All are zero outside ``action_mask`` and at the first token of a row, which nothing predicts."""

    log_probs: Tensor  # (B, T) float32, log π(token t | tokens before t) under softmax(logits / temperature)
    entropy: Tensor | None  # (B, T) float32, of the distribution that token t was drawn from
    cross_entropy: Tensor | None = None  # (B, T) float32, −Σ_v p_teacher(v) log π(v) where token t was predicted


class CausalLM(nn.Module):
    """Wraps a Hugging Face causal language model, ``hf``. With a ``ring`` every forward is packed."""

    ring: Ring | None = None

    def __init__(self, hf: PreTrainedModel, chunk_elements: int | None = None) -> None:
        super().__init__()
        self.hf = hf
        self.chunk_elements = chunk_elements
        self.logit_map = logit_map(hf.config)

    def forward(
        self,
        batch: Batch,
        temperature: float = 1.0,
        entropy: bool = False,
        packed: bool = False,
        teaching: Teaching | None = None,
    ) -> TokenScores:
        """Scores of the action tokens, computed for them alone; ``packed`` drops the padding before the model.

        With ``teaching``, what a ``Teacher`` said of the same batch, there is a cross-entropy too. Both distributions
        are then at temperature 1 and there is no entropy.
        """
        hidden = decode(self.hf.get_decoder(), batch, packed, self.ring)
        chosen = predicted_here(hidden, batch)
        head, states, targets = self.hf.get_output_embeddings(), before(hidden, chosen), batch.tokens[chosen]

        def whole(values: Tensor) -> Tensor:
            return together(spread(values, chosen), self.ring)

        if teaching is not None:
            log_probs, cross = distill_tokens(
                head, states, targets, teaching, logit_map=self.logit_map, chunk_elements=self.chunk_elements
            )
            return TokenScores(whole(log_probs), None, whole(cross))
        log_probs, entropies = score_tokens(
            head,
            states,
            targets,
            logit_map=self.logit_map,
            temperature=temperature,
            entropy=entropy,
            chunk_elements=self.chunk_elements,
        )
        return TokenScores(whole(log_probs), None if entropies is None else whole(entropies))


def logit_map(config: PreTrainedConfig) -> LogitMap:
    """What this family does between its head and its logits."""
    values = config.get_text_config().to_dict()
    family: str = values["model_type"]
    scale = 1.0
    if family.startswith("cohere"):
        scale = values["logit_scale"]
    elif family.startswith("hyperclovax"):
        scale = values["logits_scaling"]
    elif "logits_scaling" in values:  # Granite, MiniCPM
        scale = 1.0 / values["logits_scaling"]
    elif "lm_head_multiplier" in values:  # Falcon-H1
        scale = values["lm_head_multiplier"]
    elif "output_multiplier" in values:
        scale = values["output_multiplier"]
    return LogitMap(scale, values.get("final_logit_softcapping"))
