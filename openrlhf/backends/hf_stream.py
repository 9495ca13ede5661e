"""Transformers' own generation, which shows each word as soon as it is known."""

from __future__ import annotations

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from openrlhf.rollout.engine import SamplingParams


@torch.no_grad()
def stream_answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: list[int], params: SamplingParams
) -> list[int]:
    """Print the continuation of ``tokens`` as it comes; its token ids, the stop token included.

    Nothing is taken from the model's generation_config.json: what is sampled follows from ``params`` alone.
    """
    greedy = params.temperature == 0
    model.generation_config = GenerationConfig(
        do_sample=not greedy,
        temperature=None if greedy else params.temperature,
        top_p=None if greedy else params.top_p,
        top_k=None if greedy else 0,
        repetition_penalty=params.repetition_penalty,
        max_new_tokens=params.max_new_tokens,
        eos_token_id=list(params.stop_token_ids),
        pad_token_id=tokenizer.pad_token_id,
    )
    prompt = torch.tensor([tokens], device=model.device)
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), streamer=streamer)  # type: ignore[operator]
    answer: list[int] = out[0, len(tokens) :].tolist()
    return answer
