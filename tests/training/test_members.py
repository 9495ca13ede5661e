"""What one rank of a role does with its model."""

from __future__ import annotations

import pytest
import torch

from openrlhf.backends.local import LocalForward, LocalTrain
from openrlhf.config.groups import OptimConfig
from openrlhf.models.causal_lm import CausalLM
from openrlhf.models.value_head import ScoreModel
from openrlhf.training.members import CriticMember, PolicyMember, ReferenceMember, RewardMember
from openrlhf.types import Batch
from tests.models.helpers import build, build_scorer
from tests.training.helpers import rl_batch
from tests.training.test_ppo import steps_of


def scorer(normalize: bool = False) -> ScoreModel:
    model = ScoreModel(build_scorer(), normalize=normalize)
    model.set_statistics(mean=0.4, std=0.05)
    return model


@pytest.fixture
def batch() -> Batch:
    return rl_batch()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "size",
    [
        *({"micro_rollout_batch_size": rows} for rows in (1, 4, 6)),
        *(
            {"use_dynamic_batch": True, "micro_train_batch_size": 4, "rollout_max_tokens_per_gpu": tokens}
            for tokens in (1, 12, 100)
        ),
    ],
)
def test_forwards_do_not_know_the_micro_batches(batch: Batch, size: dict[str, int], packed: bool) -> None:
    config = steps_of(**size, temperature=0.6, packing_samples=packed)
    policy = CausalLM(build())
    with torch.no_grad():
        log_probs, values, scores = policy(batch, temperature=0.6).log_probs, scorer()(batch, "values"), scorer()(batch)
    near = {"rtol": 1e-5, "atol": 1e-5}
    reference = ReferenceMember(LocalForward(policy), config)
    torch.testing.assert_close(reference.log_probs(batch), log_probs.float(), **near)
    critic = CriticMember(LocalTrain(scorer(), OptimConfig(), 0.0, 1), config)
    torch.testing.assert_close(critic.values(batch), values.float(), **near)
    reward = RewardMember(LocalForward(scorer()), config)
    torch.testing.assert_close(reward.rewards(batch), scores.float(), **near)


def test_forwards_leave_no_gradient_and_no_dropout(batch: Batch) -> None:
    engine = LocalTrain(CausalLM(build()), OptimConfig(), 0.0, 1)
    engine.model.train()
    assert not PolicyMember(engine, steps_of()).log_probs(batch).requires_grad
    assert not engine.model.training


@pytest.mark.parametrize("normalize", [False, True])
def test_a_critic_learns_on_the_scale_that_it_is_read_on(batch: Batch, normalize: bool) -> None:
    """Values before the update and in it are the same numbers, so nothing is clipped and the loss is that of both."""
    config = steps_of(advantage_estimator="gae", max_epochs=1, train_batch_size=8, micro_train_batch_size=2)
    member = CriticMember(LocalTrain(scorer(normalize), OptimConfig(), 0.0, 1), config)
    values = member.values(batch)
    metrics = member.update(batch.fill(values=values))
    chosen = values[batch.action_mask]
    assert metrics["critic_value"] == pytest.approx(float(chosen.mean()), rel=1e-5)
    expected = 0.5 * (chosen - batch.returns[batch.action_mask]).square().mean()
    assert metrics["critic_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_normalised_scores_have_the_stored_statistics(batch: Batch) -> None:
    raw = RewardMember(LocalForward(scorer()), steps_of()).rewards(batch)
    normal = RewardMember(LocalForward(scorer(normalize=True)), steps_of()).rewards(batch)
    torch.testing.assert_close(normal, (raw - 0.4) / 0.05, rtol=1e-4, atol=1e-4)
