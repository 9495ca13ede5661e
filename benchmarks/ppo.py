"""One PPO step in one process with actor, critic, reference and reward model: ours, and its phases written by hand.

Sampling differs, so losses cannot agree: the number of sampled tokens and the learning rate of every step must.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.gate import Gate
from benchmarks.grpo import BATCH, CLIP, RESPONSE, SAMPLES, our_flags, prompt_texts, words
from benchmarks.material import BETAS, LEARNING_RATE, MAX_NORM

KL, LAMBDA, VALUE_CLIP = 0.04, 0.95, 0.5


def ours(gate: Gate, model: str, scorer: str) -> None:
    """The loop of ``openrlhf ppo --local``."""
    from openrlhf.backends.local_roles import local_roles
    from openrlhf.config.commands import PPOConfig
    from openrlhf.config.parse import flat, read
    from openrlhf.data.sampler import Cursor
    from openrlhf.models.load import load_tokenizer
    from openrlhf.training.log import RunLog
    from openrlhf.training.ppo import train
    from openrlhf.types import Metrics, Prompt

    class Recorder(RunLog):
        def step(self, step: int, metrics: Metrics) -> None:
            gate.record(tokens=BATCH * metrics["response_length"], lr=metrics["lr"])
            super().step(step, metrics)

    flags = our_flags(model, 0.0) | {
        "reward_pretrain": scorer,
        "advantage_estimator": "gae",
        "init_kl_coef": KL,
        "lambd": LAMBDA,
        "critic_learning_rate": LEARNING_RATE,
    }
    del flags["remote_rm_url"]
    config = read(PPOConfig, words(flags))
    tokenizer = load_tokenizer(model, config.model)
    prompts = [Prompt(i, text, tokenizer(text).input_ids) for i, text in enumerate(prompt_texts())]

    def batches() -> Iterator[tuple[list[Prompt], Cursor]]:
        while gate.opens():
            yield prompts, Cursor()

    with tempfile.TemporaryDirectory() as folder:
        log = Recorder(Path(folder), config.log, flat(config))
        train(config, local_roles(config, tokenizer, gate.total), batches(), log, tokenizer.pad_token_id, 600.0)


def phases(gate: Gate, model: str, scorer: str) -> None:
    """What one writes by hand, with full logits; no row has padding."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, get_scheduler

    actor, reference = (AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32) for _ in range(2))
    critic, judge = (
        AutoModelForSequenceClassification.from_pretrained(scorer, num_labels=1, dtype=torch.float32) for _ in range(2)
    )
    learners = [
        torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0, fused=True)
        for network in (actor, critic)
    ]
    schedulers = [get_scheduler("linear", optimizer, 0, gate.total) for optimizer in learners]
    tokenizer = AutoTokenizer.from_pretrained(model)
    prompts = torch.tensor(tokenizer(prompt_texts()).input_ids).repeat_interleave(SAMPLES, dim=0)
    first = prompts.shape[1]

    def log_probs(network: nn.Module, tokens: Tensor) -> Tensor:
        logits = network(input_ids=tokens, use_cache=False).logits[:, first - 1 : -1]
        return logits.log_softmax(-1).gather(-1, tokens[:, first:, None]).squeeze(-1)

    def values(tokens: Tensor) -> Tensor:
        states = critic.model(input_ids=tokens, use_cache=False).last_hidden_state[:, first - 1 : -1]
        return critic.score(states).squeeze(-1)

    def learn(number: int, network: nn.Module, loss: Tensor) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), MAX_NORM)
        learners[number].step()
        learners[number].zero_grad(set_to_none=True)

    while gate.opens():
        with torch.no_grad():
            tokens: Tensor = actor.generate(  # type: ignore[assignment, misc]
                prompts, attention_mask=torch.ones_like(prompts), do_sample=True, top_k=0, max_new_tokens=RESPONSE
            )
            before, old_values = log_probs(actor, tokens), values(tokens)
            scores = judge(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits[:, 0]
            rewards = -KL * (before - log_probs(reference, tokens))
            rewards[:, -1] += scores
            advantages = torch.zeros_like(rewards)
            later = torch.zeros(BATCH)
            for t in reversed(range(RESPONSE)):
                ahead = old_values[:, t + 1] if t + 1 < RESPONSE else torch.zeros(BATCH)
                later = rewards[:, t] + ahead - old_values[:, t] + LAMBDA * later
                advantages[:, t] = later
            returns = advantages + old_values
            advantages = (advantages - advantages.mean()) / advantages.std()
        ratio = (log_probs(actor, tokens) - before).exp()
        clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
        gate.record(tokens=tokens[:, first:].numel(), lr=schedulers[0].get_last_lr()[0])
        learn(0, actor, -torch.minimum(ratio * advantages, clipped * advantages).mean())
        now = values(tokens)
        near = old_values + (now - old_values).clamp(-VALUE_CLIP, VALUE_CLIP)
        learn(1, critic, 0.5 * torch.maximum((now - returns) ** 2, (near - returns) ** 2).mean())
        for scheduler in schedulers:
            scheduler.step()
