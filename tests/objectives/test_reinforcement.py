"""Policy and value objectives against the papers' formulas, written token by token on full logits in float64."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from openrlhf.config.groups import AlgorithmConfig
from openrlhf.models.causal_lm import CausalLM
from openrlhf.models.value_head import ScoreModel
from openrlhf.objectives.reinforcement import policy_loss, value_loss
from openrlhf.training.update import optimizer_step, sequence_mean
from openrlhf.types import Batch
from tests.models.helpers import build, build_scorer
from tests.training.helpers import GradientEngine, assert_same_gradient, gradient, near, rl_batch

PLAIN = AlgorithmConfig(init_kl_coef=0)
CASES = {
    "clip": PLAIN,
    "two widths and dual clip": replace(PLAIN, eps_clip_low_high=(0.1, 0.4), dual_clip=1.3),
    "entropy bonus": replace(PLAIN, entropy_loss_coef=0.5),
    "what the engine sampled from": replace(
        PLAIN, enable_vllm_is_correction=True, vllm_is_truncated_threshold=(0.8, 1.2), entropy_loss_coef=0.5
    ),
    **{f"KL loss {k}": AlgorithmConfig(use_kl_loss=True, kl_estimator=k) for k in ("k1", "k2", "k3")},
}
KL_COEF = 0.4


def paper_policy(hf, batch: Batch, algorithm: AlgorithmConfig, temperature: float) -> tuple[Tensor, dict[str, float]]:
    """One token after another: arXiv:1707.06347 eq. 7, arXiv:1912.09729 eq. 5, Schulman's k1–k3, −Σ p log p."""
    low, high = algorithm.eps_clip_low_high or (algorithm.eps_clip, algorithm.eps_clip)
    losses, seen = [], {"entropy": 0.0, "kl": 0.0, "ppo_kl": 0.0, "clip_ratio": 0.0}
    for row in range(len(batch)):
        length = int(batch.lengths[row])
        logits = hf(batch.tokens[row : row + 1, :length]).logits[0] / temperature
        for t in range(1, length):
            if not batch.action_mask[row, t]:
                continue
            distribution = logits[t - 1].log_softmax(0)
            log_prob = distribution[batch.tokens[row, t]]
            old, advantage = batch.old_log_probs[row, t], batch.advantages[row, t]
            ratio = torch.exp(log_prob - old)
            clipped = torch.clip(ratio, 1 - low, 1 + high)
            gain = min(ratio * advantage, clipped * advantage)
            decided = bool(clipped * advantage < ratio * advantage)
            if algorithm.dual_clip is not None and advantage < 0 and gain < algorithm.dual_clip * advantage:
                gain, decided = algorithm.dual_clip * advantage, True
            log_ratio = log_prob - batch.ref_log_probs[row, t]
            kl = {"k1": log_ratio, "k2": log_ratio**2 / 2, "k3": torch.exp(-log_ratio) - 1 + log_ratio}
            entropy = -(distribution.exp() * distribution).sum()
            if algorithm.enable_vllm_is_correction:  # arXiv:1802.01561, §4.1
                weight = torch.exp(old - batch.rollout_log_probs[row, t])
                gain = gain * torch.clip(weight, *algorithm.vllm_is_truncated_threshold)
            loss = -gain - algorithm.entropy_loss_coef * entropy
            if algorithm.use_kl_loss:
                loss = loss + KL_COEF * kl[algorithm.kl_estimator]
            losses.append(loss)
            chosen_kl = kl[algorithm.kl_estimator]
            shown = {"entropy": entropy, "kl": chosen_kl, "ppo_kl": old - log_prob, "clip_ratio": decided}
            for key, value in shown.items():
                seen[key] += value.item() if isinstance(value, Tensor) else value
    return sum(losses) / len(losses), {key: value / len(losses) for key, value in seen.items()}


@pytest.fixture(params=[0.5, 1.0, 1.7])
def temperature(request: pytest.FixtureRequest) -> float:
    return request.param


@pytest.fixture
def batch(temperature: float) -> Batch:
    rows = rl_batch()
    with torch.no_grad():
        return near(rows, CausalLM(build())(rows, temperature=temperature).log_probs)


@pytest.mark.parametrize("case", CASES)
def test_policy_loss_equals_the_papers(case: str, batch: Batch, temperature: float) -> None:
    algorithm, hf = CASES[case], build()
    loss, seen = paper_policy(hf, batch, algorithm, temperature)
    loss.backward()
    engine = GradientEngine(CausalLM(build()))
    objective = partial(policy_loss, algorithm=algorithm, temperature=temperature, packed=False, kl_coef=KL_COEF)
    metrics = optimizer_step(engine, batch, objective, micro_batch=4)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert {key: metrics[key] for key in seen} == pytest.approx(seen, rel=1e-5, abs=1e-7)
    assert_same_gradient(engine.gradients[0], gradient(hf))


@pytest.mark.parametrize("name", ["clip", "two widths and dual clip"])
def test_the_batch_meets_both_sides_of_the_clip(name: str, batch: Batch, temperature: float) -> None:
    """Otherwise the comparison above would prove little."""
    _, seen = paper_policy(build(), batch, CASES[name], temperature)
    assert 0.1 < seen["clip_ratio"] < 0.9


def test_without_old_log_probs_the_policy_is_its_own(batch: Batch, temperature: float) -> None:
    """The gradient of an on-policy step: −A ∇ log π, no ratio, no clip."""
    hf = build()
    engine = GradientEngine(CausalLM(build()))
    objective = partial(policy_loss, algorithm=PLAIN, temperature=temperature, packed=False, kl_coef=0.0)
    metrics = optimizer_step(engine, batch.fill(old_log_probs=None), objective, 4)
    loss = -(CausalLM(hf)(batch, temperature=temperature).log_probs * batch.advantages)[batch.action_mask].mean()
    loss.backward()
    assert_same_gradient(engine.gradients[0], gradient(hf))
    assert metrics["ppo_kl"] == 0 and metrics["clip_ratio"] == 0


def test_the_log_probs_of_the_engine_are_compared(batch: Batch, temperature: float) -> None:
    objective = partial(policy_loss, algorithm=PLAIN, temperature=temperature, packed=False, kl_coef=0.0)
    metrics = optimizer_step(GradientEngine(CausalLM(build())), batch, objective, 4)
    expected = (batch.old_log_probs - batch.rollout_log_probs)[batch.action_mask].abs().mean()
    assert metrics["engine_log_prob_diff"] == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 6])
def test_gspo_is_a_mean_over_answers(micro_batch_size: int, batch: Batch, temperature: float) -> None:
    """arXiv:2507.18071, eq. 5: 1/G Σ min(s A, clip(s) A) with one advantage for an answer, however the batch is cut."""
    batch = batch.fill(advantages=batch.advantages[:, :1].expand_as(batch.advantages))
    algorithm = replace(PLAIN, policy_loss_type="gspo", eps_clip=0.02)
    hf = build()
    log_probs = CausalLM(hf)(batch, temperature=temperature).log_probs
    gains = []
    for row, mask in enumerate(batch.action_mask):
        if mask.any():
            ratio = (log_probs[row] - batch.old_log_probs[row])[mask].mean().exp()
            advantage = batch.advantages[row, 0]
            gains.append(min(ratio * advantage, ratio.clip(0.98, 1.02) * advantage))
    loss = -sum(gains) / len(gains)
    loss.backward()
    engine = GradientEngine(CausalLM(build()))
    objective = partial(policy_loss, algorithm=algorithm, temperature=temperature, packed=False, kl_coef=0.0)
    metrics = optimizer_step(engine, batch, objective, micro_batch_size, sequence_mean)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert_same_gradient(engine.gradients[0], gradient(hf))


@pytest.mark.parametrize("clip", [0.05, 0.2, 10.0])
def test_value_loss_equals_the_paper(clip: float) -> None:
    """arXiv:2005.12729 §3: ½ max of the plain and the clipped squared error, V(state before token t) by the head."""
    batch, hf = rl_batch(), build_scorer()
    states = hf.model(batch.tokens, attention_mask=batch.attention_mask.long()).last_hidden_state
    batch = batch.fill(values=(states @ hf.score.weight.T)[..., 0].roll(1, dims=1).detach() + 0.1 * batch.values)
    losses, chosen = [], []
    for row, t in batch.action_mask.nonzero().tolist():
        value = hf.score.weight[0] @ states[row, t - 1]
        old, target = batch.values[row, t], batch.returns[row, t]
        bounded = torch.clip(value, old - clip, old + clip)
        losses.append(max((value - target) ** 2, (bounded - target) ** 2) / 2)
        chosen.append(value.item())
    loss = sum(losses) / len(losses)
    loss.backward()
    engine = GradientEngine(ScoreModel(build_scorer()))
    metrics = optimizer_step(engine, batch, partial(value_loss, value_clip=clip, packed=False), 4)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert metrics["value"] == pytest.approx(sum(chosen) / len(chosen), rel=1e-5)
    assert metrics["return"] == pytest.approx(float(batch.returns[batch.action_mask].mean()), rel=1e-5)
    assert_same_gradient(engine.gradients[0], gradient(hf))


@pytest.mark.parametrize("field", ["values", "returns"])
def test_a_missing_field_is_named(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        value_loss(ScoreModel(build_scorer()), rl_batch().fill(**{field: None}), value_clip=0.2, packed=False)
