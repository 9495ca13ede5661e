"""What rows a run trains on, as one short word: to notice that they changed between two runs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from openrlhf.types import Prompt, Sample


def fingerprint_samples(samples: Sequence[Sample]) -> str:
    """Depends on their number and order, and on everything of them that is learned from."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(repr((len(sample.tokens), sample.label, sample.reward)).encode())
        for tensor in (sample.tokens, sample.action_mask, sample.labels):
            digest.update(b"" if tensor is None else tensor.numpy().tobytes())
    return _word(len(samples), digest.hexdigest())


def fingerprint_prompts(prompts: Sequence[Prompt]) -> str:
    """Depends on their number and order, their tokens and labels."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(repr((prompt.tokens, prompt.label, prompt.source)).encode())
    return _word(len(prompts), digest.hexdigest())


def _word(count: int, digest: str) -> str:
    return f"{count} rows {digest[:16]}"
