"""Conversations sampled by a real model: the trainer sees what the engine saw, and credit skips the environment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from openrlhf.algorithms.advantages import AdvantageInputs, estimate_advantages
from openrlhf.algorithms.kl import kl_estimate
from openrlhf.algorithms.rewards import kl_penalty
from openrlhf.backends.hf_generate import HFGenerate
from openrlhf.config.groups import ModelConfig
from openrlhf.models.load import load_causal_lm, load_tokenizer
from openrlhf.rollout.agents import Agent, load_executor
from openrlhf.rollout.collect import collect
from openrlhf.rollout.engine import SamplingParams
from openrlhf.types import Batch, Prompt, collate

CODE = """
class AgentInstance:
    def reset(self, states):
        self.turns = 0
        return {"observation": states["observation"]}

    def step(self, states):
        self.turns += 1
        return {"rewards": self.turns, "environment_feedback": " go on " * self.turns, "done": self.turns == 3}
"""
PARAMS = SamplingParams(temperature=0.8, max_new_tokens=6, stop_token_ids=(1, 40, 41, 42), seed=5)


@pytest.fixture(scope="module")
def conversations(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Batch:
    file = tmp_path_factory.mktemp("agent") / "three.py"
    file.write_text(CODE)
    config = ModelConfig(pretrain=str(tiny_folder))
    model, tokenizer = load_causal_lm(str(tiny_folder), config), load_tokenizer(str(tiny_folder), config)
    prompts = [Prompt(i, text, tokenizer(text).input_ids) for i, text in enumerate(["hello", "What is 2 + 3?", "a"])]
    agent = Agent(str(file), load_executor(str(file)), max_length=120, timeout_s=60, drops_failures=False)
    samples = collect(prompts, HFGenerate(model.hf), PARAMS, 4, tokenizer, None, agent)
    batch = collate(samples, pad_token_id=0)
    with torch.no_grad():
        plain = model(batch, temperature=0.8).log_probs
        packed = model(batch, temperature=0.8, packed=True).log_probs
    torch.testing.assert_close(packed[batch.action_mask], plain[batch.action_mask])
    return batch.fill(old_log_probs=plain)


def test_the_trainer_agrees_with_the_engine_on_every_turn(conversations: Batch) -> None:
    mask = conversations.action_mask
    starts = mask & ~torch.nn.functional.pad(mask, (1, -1))
    assert starts.sum(dim=1).tolist() == [3] * 12
    torch.testing.assert_close(
        conversations.rollout_log_probs[mask], conversations.old_log_probs[mask], atol=1e-4, rtol=0
    )


def test_advantages_are_those_of_the_conversation_without_the_environment(conversations: Batch) -> None:
    """GAE over the policy's tokens alone, in float64; values and log-probs of other tokens are poisoned."""
    mask, gamma, lambd, beta = conversations.action_mask, 0.97, 0.9, 0.1
    generator = torch.Generator().manual_seed(0)
    values, reference = (torch.randn(mask.shape, generator=generator) for _ in range(2))
    values, reference = (torch.where(mask, x, torch.nan) for x in (values, reference))
    kl = kl_estimate(conversations.old_log_probs, reference, "k1")
    inputs = AdvantageInputs(
        rewards=conversations.rewards, kl_rewards=kl_penalty(kl, beta, mask), action_mask=mask,
        groups=conversations.groups, values=values, gamma=gamma, lambd=lambd, reward_clip=(-10.0, 10.0),
    )  # fmt: skip
    advantages, returns = estimate_advantages("gae", inputs)
    expected = []
    for row in range(len(mask)):
        keep = mask[row].numpy()
        v = values[row].double().numpy()[keep]
        r = -beta * (conversations.old_log_probs - reference)[row].double().numpy()[keep]
        r[-1] += 1 + 2 + 3  # the turns' rewards
        delta = r + gamma * np.append(v[1:], 0) - v
        gae = np.zeros_like(v)
        for t in reversed(range(len(v))):
            gae[t] = delta[t] + (gamma * lambd * gae[t + 1] if t + 1 < len(v) else 0)
        np.testing.assert_allclose(returns[row].numpy()[keep], gae + v, atol=1e-4)
        expected.append(gae)
    flat = np.concatenate(expected)
    whitened = (flat - flat.mean()) / np.sqrt(max(flat.var(), 1e-8))
    np.testing.assert_allclose(advantages[mask].numpy(), whitened, atol=1e-3)
    assert (advantages[~mask] == 0).all()
