"""One step of RL a second time: slow loops over single numbers in float64, from the papers, on full logits.

It shares nothing with the package. A KL estimate is held within ±10. A sample is
(tokens, action positions, reward, group).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Sample = tuple[list[int], list[int], float, int]


@dataclass
class Setting:
    estimator: str
    temperature: float
    gamma: float
    lambd: float
    eps: float
    value_clip: float
    kl_coef: float
    kl_in_loss: bool
    reward_clip: tuple[float, float]
    mini_batch: int
    epochs: int
    peak: dict[str, float]  # learning rate by role
    total_steps: int
    warmup: int
    betas: tuple[float, float] = (0.9, 0.95)
    max_norm: float = 1.0
    entropy: float = 0.0
    policy_loss: str = "ppo"
    correction: str | None = None
    threshold: tuple[float, float] = (0.5, 5.0)


@dataclass
class AdamW:
    """Loshchilov & Hutter without decay, after clipping the global norm; cosine from ``peak`` to a tenth of it."""

    model: Any
    setting: Setting
    peak: float
    t: int = 0
    m: list[Tensor] = field(default_factory=list)
    v: list[Tensor] = field(default_factory=list)

    def lr(self) -> float:
        s = self.setting
        if self.t < s.warmup:
            return self.peak * self.t / s.warmup
        progress = (self.t - s.warmup) / (s.total_steps - s.warmup)
        return self.peak * (0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2)

    def step(self, loss: Tensor) -> float:
        params = list(self.model.parameters())
        grads = torch.autograd.grad(loss, params)
        norm = math.sqrt(sum((g**2).sum().item() for g in grads))
        if not self.m:
            self.m, self.v = [torch.zeros_like(g) for g in grads], [torch.zeros_like(g) for g in grads]
        lr, (b1, b2) = self.lr(), self.setting.betas
        self.t += 1
        with torch.no_grad():
            for p, g, m, v in zip(params, grads, self.m, self.v, strict=True):
                g = g * min(1.0, self.setting.max_norm / norm)
                m.mul_(b1).add_((1 - b1) * g)
                v.mul_(b2).add_((1 - b2) * g**2)
                p -= lr * (m / (1 - b1**self.t)) / ((v / (1 - b2**self.t)).sqrt() + 1e-8)
        return norm


def log_probs(hf: Any, sample: Sample, temperature: float) -> tuple[list[Tensor], list[Tensor]]:
    """log π and entropy of each action of one sample."""
    tokens, positions, _, _ = sample
    table = (hf(torch.tensor([tokens])).logits[0] / temperature).log_softmax(dim=1)
    chosen = [table[t - 1, tokens[t]] for t in positions]
    return chosen, [-(table[t - 1].exp() * table[t - 1]).sum() for t in positions]


def values(critic: Any, sample: Sample) -> list[Tensor]:
    tokens, positions, _, _ = sample
    states = critic.model(torch.tensor([tokens])).last_hidden_state[0]
    return [states[t - 1] @ critic.score.weight[0] for t in positions]


def advantages(
    samples: list[Sample], old: list[list[float]], ref: list[list[float]], v: list[list[float]] | None, s: Setting
) -> tuple[list[list[float]], list[list[float]]]:
    """Each estimator as its paper writes it."""
    result, targets = [], []
    for i, (_, positions, reward, group) in enumerate(samples):
        mates = [r for (_, p, r, g) in samples if g == group and p]
        others = [r for j, (_, p, r, g) in enumerate(samples) if g == group and p and j != i]
        mean = sum(mates) / len(mates)
        if s.estimator in ("reinforce_baseline", "dr_grpo"):
            reward -= mean
        elif s.estimator == "rloo":
            reward -= sum(others) / len(others)
        elif s.estimator == "group_norm":
            reward = (reward - mean) / (math.sqrt(sum((r - mean) ** 2 for r in mates) / (len(mates) - 1)) + 1e-9)
        reward = min(max(reward, s.reward_clip[0]), s.reward_clip[1])
        n = len(positions)
        per_token = [0.0] * n
        for k in range(n):
            if not s.kl_in_loss:
                per_token[k] -= s.kl_coef * (old[i][k] - ref[i][k])
            if k == n - 1:
                per_token[k] += reward
        if s.estimator == "gae":
            assert v is not None
            delta = [per_token[k] + s.gamma * (v[i][k + 1] if k + 1 < n else 0.0) - v[i][k] for k in range(n)]
            a = [sum((s.gamma * s.lambd) ** (j - k) * delta[j] for j in range(k, n)) for k in range(n)]
            targets.append([a[k] + v[i][k] for k in range(n)])
        else:
            gamma = s.gamma if s.estimator == "reinforce" else 1.0
            a = [sum(gamma ** (j - k) * per_token[j] for j in range(k, n)) for k in range(n)]
            targets.append(a)
        result.append(a)
    if s.estimator in ("gae", "reinforce", "reinforce_baseline"):
        flat = [x for row in result for x in row]
        mean = sum(flat) / len(flat)
        std = math.sqrt(sum((x - mean) ** 2 for x in flat) / len(flat))
        result = [[(x - mean) / std for x in row] for row in result]
    return result, targets


def policy_losses(new: list[Tensor], old: list[float], a: list[float], s: Setting) -> list[Tensor]:
    """The loss of each action of one answer: arXiv:1707.06347 eq. 7, 2507.18071 eq. 5, 2506.13585 eq. 4."""
    ratios = [(x - y).exp() for x, y in zip(new, old, strict=True)]
    if s.policy_loss == "gspo":
        ratios = [torch.stack([r.log() for r in ratios]).mean().exp()] * len(new)
    bounded = [r.clip(1 - s.eps, 1 + s.eps) for r in ratios]
    if s.policy_loss == "cispo":
        return [-b.detach() * x * y for b, x, y in zip(bounded, a, new, strict=True)]
    return [-min(r * x, b * x) for r, b, x in zip(ratios, bounded, a, strict=True)]


def corrections(old: list[float], sampled: list[float], s: Setting) -> list[float]:
    """Weights of the actions of one answer: truncated, cut out, or cut out with the whole answer."""
    w = [math.exp(x - y) for x, y in zip(old, sampled, strict=True)]
    low, high = s.threshold
    if s.correction == "tis":
        return [min(max(x, low), high) for x in w]
    if s.correction == "icepop":
        return [x if low <= x <= high else 0.0 for x in w]
    mean = math.exp(sum(math.log(x) for x in w) / len(w))
    return [x if low <= mean <= high else 0.0 for x in w]


def step(
    samples: list[Sample],
    actor: AdamW,
    critic: AdamW | None,
    reference: Any,
    s: Setting,
    sampled: list[list[float]] | None = None,
) -> dict[str, float]:
    """Rewards → advantages → clipped losses → new weights in place. Returns some means over the optimizer steps.

    ``sampled`` are the engine's log-probs of the actions, for a correction.
    """
    with torch.no_grad():
        old = [[float(x) for x in log_probs(actor.model, sample, s.temperature)[0]] for sample in samples]
        ref = [[float(x) for x in log_probs(reference, sample, s.temperature)[0]] for sample in samples]
        v = None if critic is None else [[float(x) for x in values(critic.model, sample)] for sample in samples]
    a, targets = advantages(samples, old, ref, v, s)
    seen: dict[str, list[float]] = {"loss": [], "grad_norm": [], "critic_loss": [], "critic_grad_norm": []}
    for _ in range(s.epochs):
        for start in range(0, len(samples), s.mini_batch):
            rows = range(start, min(start + s.mini_batch, len(samples)))
            losses, value_losses = [], []
            for i in rows:
                new, entropies = log_probs(actor.model, samples[i], s.temperature)
                weights = [1.0] * len(new) if sampled is None else corrections(old[i], sampled[i], s)
                share = 1 / len(new) if s.policy_loss == "gspo" else 1.0  # of a token in its answer's mean
                for k, policy in enumerate(policy_losses(new, old[i], a[i], s)):
                    loss = weights[k] * policy - s.entropy * entropies[k]
                    if s.kl_in_loss:
                        loss = loss + s.kl_coef * torch.clip((new[k] - ref[i][k]) ** 2 / 2, max=10.0)
                    losses.append(share * loss)
                if critic is not None and v is not None:
                    for k, value in enumerate(values(critic.model, samples[i])):
                        bounded = torch.clip(value, v[i][k] - s.value_clip, v[i][k] + s.value_clip)
                        target = targets[i][k]
                        value_losses.append(max((value - target) ** 2, (bounded - target) ** 2) / 2)
            total = sum(losses) / (len(rows) if s.policy_loss == "gspo" else len(losses))
            seen["loss"].append(total.item())
            seen["grad_norm"].append(actor.step(total))
            if critic is not None:
                total = sum(value_losses) / len(value_losses)
                seen["critic_loss"].append(total.item())
                seen["critic_grad_norm"].append(critic.step(total))
    return {name: sum(column) / len(column) for name, column in seen.items() if column}
