"""Rewards → advantages: who did better than expected, token by token.

The order is: shape the outcome rewards within each group → clip → put them on the last action token and add the KL
reward → returns → whiten over the whole rollout batch where the estimator asks for it. Samples without any action
token made no choice: they are left out of every group statistic. Where an agent's turns have rewards of their own, the
estimators that compare with no group, gae and reinforce, leave them at their turns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from openrlhf.algorithms import returns as token_returns
from openrlhf.algorithms.masked import group_mean, group_std, leave_one_out_mean, whiten, zero_outside
from openrlhf.algorithms.registry import lookup
from openrlhf.algorithms.rewards import clip_rewards, place_on_last_token


@dataclass(frozen=True)
class AdvantageInputs:
    """One rollout batch, as an estimator sees it."""

    rewards: Tensor  # (B,) outcome rewards
    kl_rewards: Tensor  # (B, T) −coef · KL, or zeros
    action_mask: Tensor  # (B, T) bool
    groups: Tensor  # (B,) int64, one number per prompt
    values: Tensor | None  # (B, T) by the critic
    gamma: float
    lambd: float
    reward_clip: tuple[float, float]
    turn_rewards: Tensor | None = None  # (B, T) the rewards in parts, each on the last token of its turn

    @property
    def members(self) -> Tensor:
        """(B,) bool: the samples with at least one action token."""
        return self.action_mask.any(dim=1)


AdvantageFunction = Callable[[AdvantageInputs], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Estimator:
    """A function AdvantageInputs → (advantages (B, T), returns (B, T)), and what it needs around it."""

    function: AdvantageFunction
    needs_critic: bool = False
    needs_groups: bool = False  # more than one sample per prompt
    whitens: bool = False


def gae(inputs: AdvantageInputs) -> tuple[Tensor, Tensor]:
    """PPO's advantages, relative to a critic: → (B, T), (B, T). Raises ValueError without values.

    Paper: Schulman et al., arXiv:1506.02438; arXiv:1707.06347.
    """
    if inputs.values is None:
        raise ValueError("--advantage_estimator gae needs the values of a critic, and there is none; pick another one.")
    return token_returns.gae(rewards_by_turn(inputs), inputs.values, inputs.action_mask, inputs.gamma, inputs.lambd)


def reinforce(inputs: AdvantageInputs) -> tuple[Tensor, Tensor]:
    """REINFORCE++: the discounted return itself: → (B, T), twice. Paper: Hu et al., arXiv:2501.03262."""
    returns = token_returns.discounted_returns(rewards_by_turn(inputs), inputs.action_mask, inputs.gamma)
    return returns, returns


def reinforce_baseline(inputs: AdvantageInputs) -> tuple[Tensor, Tensor]:
    """REINFORCE++-baseline, r − mean of the group: → (B, T), twice. Paper: Hu et al., arXiv:2501.03262."""
    return _returns(inputs.rewards - group_mean(inputs.rewards, inputs.groups, inputs.members), inputs)


def rloo(inputs: AdvantageInputs) -> tuple[Tensor, Tensor]:
    """r − mean of the others of the group: → (B, T), twice. Paper: Ahmadian et al., arXiv:2402.14740, §2.2."""
    return _returns(inputs.rewards - leave_one_out_mean(inputs.rewards, inputs.groups, inputs.members), inputs)


def group_norm(inputs: AdvantageInputs) -> tuple[Tensor, Tensor]:
    """GRPO, (r − mean of the group) / (std of the group + 1e-9): → (B, T), twice.

    Paper: Shao et al., arXiv:2402.03300, §4.1.2.
    """
    centred = inputs.rewards - group_mean(inputs.rewards, inputs.groups, inputs.members)
    return _returns(centred / (group_std(inputs.rewards, inputs.groups, inputs.members) + 1e-9), inputs)


def dr_grpo(inputs: AdvantageInputs) -> tuple[Tensor, Tensor]:
    """Dr. GRPO, r − mean of the group and never a division by a std: → (B, T), twice.

    Paper: Liu et al., arXiv:2503.20783, §3.2.
    """
    return reinforce_baseline(inputs)


ADVANTAGE_ESTIMATORS: dict[str, Estimator] = {
    "gae": Estimator(gae, needs_critic=True, whitens=True),
    "reinforce": Estimator(reinforce, whitens=True),
    "reinforce_baseline": Estimator(reinforce_baseline, needs_groups=True, whitens=True),
    "rloo": Estimator(rloo, needs_groups=True),
    "group_norm": Estimator(group_norm, needs_groups=True),
    "dr_grpo": Estimator(dr_grpo, needs_groups=True),
}


def find_estimator(name: str) -> Estimator:
    """The registry entry called ``name``, or what ``path/file.py:function`` defines.

    That is a function, which then needs nothing, or an ``Estimator``, which says what it needs.
    Raises ValueError when there is no such name, file or function.
    """
    found = lookup(ADVANTAGE_ESTIMATORS, name, "--advantage_estimator")
    return found if isinstance(found, Estimator) else Estimator(found)


def estimate_advantages(name: str, inputs: AdvantageInputs, std_norm: bool = True) -> tuple[Tensor, Tensor]:
    """→ (advantages, returns), both (B, T) and 0 outside the action mask. Whitened when the estimator says so.

    ``std_norm=False`` keeps of the whitening only the subtraction of the mean. Raises ValueError for an unknown
    estimator, or one from a file that returns another shape. Paper: Hu et al., arXiv:2501.03262 (whitening over the
    batch); the estimators cite their own.
    """
    estimator = find_estimator(name)
    advantages, returns = estimator.function(inputs)
    if not advantages.shape == returns.shape == inputs.action_mask.shape:
        raise ValueError(
            f"--advantage_estimator {name} returned the shapes {tuple(advantages.shape)} and {tuple(returns.shape)}; "
            f"both must be that of the action mask, {tuple(inputs.action_mask.shape)}."
        )
    if estimator.whitens:
        advantages = whiten(advantages, inputs.action_mask, scale=std_norm)
    return zero_outside(advantages, inputs.action_mask), zero_outside(returns, inputs.action_mask)


def token_rewards(shaped: Tensor, inputs: AdvantageInputs) -> Tensor:
    """(B,) shaped rewards → (B, T): clipped, on the last action token, plus the KL reward of each action token.

    Paper: Ziegler et al., arXiv:1909.08593, eq. 2.
    """
    outcome = place_on_last_token(clip_rewards(shaped, *inputs.reward_clip), inputs.action_mask)
    return outcome + zero_outside(inputs.kl_rewards, inputs.action_mask)


def rewards_by_turn(inputs: AdvantageInputs) -> Tensor:
    """→ (B, T): each turn's reward, clipped, on the last token of the turn, plus the KL reward of each action token.

    Without rewards of turns that is ``token_rewards``. Paper: Schulman et al., arXiv:1506.02438, §2 (each step of the
    process has its reward).
    """
    if inputs.turn_rewards is None:
        return token_rewards(inputs.rewards, inputs)
    of_turns = clip_rewards(inputs.turn_rewards, *inputs.reward_clip)
    return zero_outside(of_turns + inputs.kl_rewards, inputs.action_mask)


def _returns(shaped: Tensor, inputs: AdvantageInputs) -> tuple[Tensor, Tensor]:
    """Advantages that are the undiscounted returns of what a group made of the outcome."""
    returns = token_returns.discounted_returns(token_rewards(shaped, inputs), inputs.action_mask, 1.0)
    return returns, returns
