from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from openrlhf.algorithms.advantages import (
    ADVANTAGE_ESTIMATORS,
    AdvantageInputs,
    Estimator,
    estimate_advantages,
    find_estimator,
    token_rewards,
)
from openrlhf.algorithms.rewards import place_on_last_token

GROUPS = [3, 3, 3, 8, 8, 8, 8, 5]  # row 2 has no action token, row 7 is alone
NEEDS_GROUPS = [name for name, entry in ADVANTAGE_ESTIMATORS.items() if entry.needs_groups]


@pytest.fixture
def inputs(normal, mask):
    return AdvantageInputs(
        rewards=normal(len(mask)) * 2,
        kl_rewards=torch.where(mask, normal() * 0.1, 0.0),
        action_mask=mask,
        groups=torch.tensor(GROUPS),
        values=normal(),
        gamma=0.9,
        lambd=0.8,
        reward_clip=(-1.5, 1.2),
    )


def slow_shaped(name, rewards, rows):
    """The outcome rewards after the group's part, in plain Python. ``rows``: those with an action token."""
    out = {}
    for b in rows:
        peers = [rewards[i] for i in rows if GROUPS[i] == GROUPS[b]]
        rest = [rewards[i] for i in rows if GROUPS[i] == GROUPS[b] and i != b]
        mean = sum(peers) / len(peers)
        if name in ("gae", "reinforce"):
            out[b] = rewards[b]
        elif name == "rloo":
            out[b] = rewards[b] - sum(rest) / len(rest) if rest else 0.0
        elif name in ("reinforce_baseline", "dr_grpo"):
            out[b] = rewards[b] - mean
        elif name == "group_norm":
            variance = sum((r - mean) ** 2 for r in peers) / max(len(peers) - 1, 1)
            out[b] = (rewards[b] - mean) / (math.sqrt(variance) + 1e-9)
    return out


def slow_advantages(name, inputs, std_norm):
    """§ by §: shaping, clip, last token + KL, returns or GAE, whitening; {(b, t): advantage}, {(b, t): return}."""
    mask = inputs.action_mask.tolist()
    steps = {b: [t for t, chosen in enumerate(row) if chosen] for b, row in enumerate(mask) if any(row)}
    shaped = slow_shaped(name, inputs.rewards.tolist(), list(steps))
    low, high = inputs.reward_clip
    gamma = inputs.gamma if name in ("gae", "reinforce") else 1.0
    advantages, returns = {}, {}
    for b, ts in steps.items():
        r = [inputs.kl_rewards[b, t].item() for t in ts]
        r[-1] += min(max(shaped[b], low), high)
        v = [inputs.values[b, t].item() for t in ts] + [0.0]
        for i, t in enumerate(ts):
            later = range(i, len(ts))
            if name == "gae":
                decay = gamma * inputs.lambd
                a = sum(decay ** (k - i) * (r[k] + gamma * v[k + 1] - v[k]) for k in later)
                advantages[b, t], returns[b, t] = a, a + v[i]
            else:
                advantages[b, t] = returns[b, t] = sum(gamma ** (k - i) * r[k] for k in later)
    if name in ("gae", "reinforce", "reinforce_baseline"):
        mean = sum(advantages.values()) / len(advantages)
        variance = sum((a - mean) ** 2 for a in advantages.values()) / len(advantages)
        scale = math.sqrt(max(variance, 1e-8)) if std_norm else 1.0
        advantages = {key: (a - mean) / scale for key, a in advantages.items()}
    return advantages, returns


@pytest.mark.parametrize("std_norm", [True, False])
@pytest.mark.parametrize("name", ["gae", "reinforce", "reinforce_baseline", "rloo", "group_norm", "dr_grpo"])
def test_golden(inputs, name, std_norm):
    advantages, returns = estimate_advantages(name, inputs, std_norm)
    expected_advantages, expected_returns = slow_advantages(name, inputs, std_norm)
    for key in expected_advantages:
        assert advantages[key].item() == pytest.approx(expected_advantages[key], rel=1e-9, abs=1e-12)
        assert returns[key].item() == pytest.approx(expected_returns[key], rel=1e-9, abs=1e-12)


def test_the_golden_clips_something_on_both_sides(inputs):
    rows = [b for b in range(len(GROUPS)) if inputs.action_mask[b].any()]
    for name in ("reinforce", "rloo"):
        shaped = slow_shaped(name, inputs.rewards.tolist(), rows).values()
        assert min(shaped) < inputs.reward_clip[0] and max(shaped) > inputs.reward_clip[1]


def test_by_hand():
    """One group, rewards 1, 0, 0, 3, no KL, one token each: the numbers of the papers."""
    rewards = torch.tensor([1.0, 0.0, 0.0, 3.0], dtype=torch.float64)
    one = torch.ones(4, 1, dtype=torch.bool)
    inputs = AdvantageInputs(rewards, torch.zeros(4, 1), one, torch.zeros(4), None, 1.0, 1.0, (-10.0, 10.0))
    assert estimate_advantages("rloo", inputs)[0].flatten().tolist() == pytest.approx([0, -4 / 3, -4 / 3, 8 / 3])
    assert estimate_advantages("dr_grpo", inputs)[0].flatten().tolist() == [0, -1, -1, 2]
    root = math.sqrt(2.0)  # unbiased: (0 + 1 + 1 + 4) / 3
    assert estimate_advantages("group_norm", inputs)[0].flatten().tolist() == pytest.approx(
        [0, -1 / root, -1 / root, 2 / root]
    )
    root = math.sqrt(1.5)  # of the population: (0 + 1 + 1 + 4) / 4
    assert estimate_advantages("reinforce_baseline", inputs)[0].flatten().tolist() == pytest.approx(
        [0, -1 / root, -1 / root, 2 / root]
    )


def two_turns(**given):
    """Two tokens of the policy, one of the environment, two of the policy: paid 1 after the first turn, 3 at the end.
    The KL reward is −0.5 on the first token; what stands on the environment's token must not be read.
    """
    mask = torch.tensor([[False, True, True, False, True, True]])
    nan = float("nan")
    settings = {
        "rewards": torch.tensor([4.0], dtype=torch.float64),
        "kl_rewards": torch.tensor([[nan, -0.5, 0.0, nan, 0.0, 0.0]], dtype=torch.float64),
        "action_mask": mask,
        "groups": torch.tensor([0]),
        "values": torch.tensor([[nan, 2.0, 1.0, nan, 4.0, 2.0]], dtype=torch.float64),
        "gamma": 0.5,
        "lambd": 1.0,
        "reward_clip": (-10.0, 10.0),
        "turn_rewards": torch.tensor([[nan, 0.0, 1.0, nan, 0.0, 3.0]], dtype=torch.float64),
    }
    return AdvantageInputs(**settings | given)


def raw(name, inputs):
    """Before whitening, of the tokens of the policy."""
    advantages, returns = find_estimator(name).function(inputs)
    assert advantages[~inputs.action_mask].tolist() == returns[~inputs.action_mask].tolist() == [0.0, 0.0]
    return advantages[inputs.action_mask].tolist(), returns[inputs.action_mask].tolist()


def test_the_rewards_of_turns_by_hand():
    """G₄ = 3, G₃ = ½·3, G₂ = 1 + ½·1.5, G₁ = −½ + ½·1.75; and with λ = 1 an advantage is G − V."""
    returns = [0.375, 1.75, 1.5, 3.0]
    assert raw("reinforce", two_turns()) == (returns, returns)
    assert raw("gae", two_turns()) == ([0.375 - 2, 1.75 - 1, 1.5 - 4, 3.0 - 2], returns)
    # λ = ½: δ = −½ + ½·1 − 2, 1 + ½·4 − 1, 0 + ½·2 − 4, 3 − 2 and A_t = δ_t + ¼ A_{t+1}
    assert raw("gae", two_turns(lambd=0.5))[0] == [-2 + 1.3125 / 4, 2 - 2.75 / 4, -3 + 1 / 4, 1.0]
    # Without discount the second turn is worth its own 3, and only the first all 4.
    assert raw("reinforce", two_turns(gamma=1.0))[0] == [3.5, 4.0, 3.0, 3.0]
    # At the end alone, every token is worth the sum.
    assert raw("reinforce", two_turns(gamma=1.0, turn_rewards=None))[0] == [3.5, 4.0, 4.0, 4.0]
    # Each turn is clipped.
    assert raw("reinforce", two_turns(gamma=1.0, reward_clip=(-2.0, 2.0)))[0] == [2.5, 3.0, 2.0, 2.0]


@pytest.mark.parametrize("name", NEEDS_GROUPS)
def test_groups_compare_the_sums_of_turns(inputs, name):
    parts = replace(inputs, turn_rewards=torch.full_like(inputs.kl_rewards, 7.0))
    for got, expected in zip(estimate_advantages(name, parts), estimate_advantages(name, inputs), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("name", ["gae", "reinforce"])
def test_turns_that_are_paid_at_the_end_alone_change_nothing(inputs, name):
    parts = replace(inputs, turn_rewards=place_on_last_token(inputs.rewards, inputs.action_mask))
    for got, expected in zip(estimate_advantages(name, parts), estimate_advantages(name, inputs), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("name", NEEDS_GROUPS)
def test_baselines_of_a_group_sum_to_zero(inputs, name):
    first = torch.zeros_like(inputs.action_mask)
    first[:, 0] = True
    wide = replace(inputs, action_mask=first, kl_rewards=torch.zeros_like(inputs.kl_rewards), reward_clip=(-99, 99))
    _, returns = estimate_advantages(name, wide)
    for group in set(GROUPS):
        assert returns[wide.groups == group].sum().item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", NEEDS_GROUPS)
def test_equal_rewards_teach_nothing(inputs, name):
    """Also in float32, where the sum of equal rewards is rounded: GRPO's division by 1e-9 must not enlarge that."""
    rewards, kl_rewards = torch.full((len(GROUPS),), 0.1), torch.zeros_like(inputs.kl_rewards, dtype=torch.float32)
    advantages, _ = estimate_advantages(name, replace(inputs, rewards=rewards, kl_rewards=kl_rewards))
    assert not advantages.any()


@pytest.mark.parametrize("name", ADVANTAGE_ESTIMATORS)
def test_a_sample_without_actions_does_not_move_the_others(inputs, name):
    """Row 2 has no action: whatever its reward, and even if it were not there, the others get the same."""
    before = estimate_advantages(name, inputs)
    rewards = inputs.rewards.clone()
    rewards[2] = 1000.0
    for a, b in zip(before, estimate_advantages(name, replace(inputs, rewards=rewards)), strict=True):
        assert torch.equal(a, b)
    rest = [0, 1, 3, 4, 5, 6, 7]
    for a, b in zip(before, estimate_advantages(name, rows(inputs, rest)), strict=True):
        torch.testing.assert_close(a[rest], b, rtol=1e-12, atol=1e-12)


def rows(inputs, index):
    return replace(
        inputs,
        rewards=inputs.rewards[index],
        kl_rewards=inputs.kl_rewards[index],
        action_mask=inputs.action_mask[index],
        groups=inputs.groups[index],
        values=inputs.values[index],
    )


@pytest.mark.parametrize("name", ADVANTAGE_ESTIMATORS)
def test_order_of_rows_does_not_matter(inputs, name):
    order = [5, 2, 7, 0, 3, 6, 1, 4]
    straight, shuffled = estimate_advantages(name, inputs), estimate_advantages(name, rows(inputs, order))
    for a, b in zip(straight, shuffled, strict=True):
        torch.testing.assert_close(a[order], b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ADVANTAGE_ESTIMATORS)
def test_names_of_groups_do_not_matter(inputs, name):
    renamed = replace(inputs, groups=inputs.groups * -1000)
    assert torch.equal(estimate_advantages(name, inputs)[0], estimate_advantages(name, renamed)[0])


@pytest.mark.parametrize("name", ADVANTAGE_ESTIMATORS)
def test_poison(inputs, name):
    """NaN in every slot outside the mask, and in the reward of the row without actions: not a bit changes."""
    outside = ~inputs.action_mask
    poisoned = replace(
        inputs,
        rewards=inputs.rewards.masked_fill(outside.all(dim=1), math.nan),
        kl_rewards=inputs.kl_rewards.masked_fill(outside, math.nan),
        values=inputs.values.masked_fill(outside, math.nan),
    )
    for a, b in zip(estimate_advantages(name, inputs), estimate_advantages(name, poisoned), strict=True):
        assert torch.equal(a, b)


SHAPES = {
    "ragged": slice(None),
    "single row": slice(0, 1),
    "single action": slice(3, 4),
    "no action": slice(2, 3),
    "two groups": slice(0, 5),
}


@pytest.mark.parametrize("which", SHAPES)
@pytest.mark.parametrize("name", ADVANTAGE_ESTIMATORS)
def test_every_entry_on_every_shape(inputs, name, which):
    part = rows(inputs, SHAPES[which])
    for out in estimate_advantages(name, part):
        assert out.shape == part.action_mask.shape
        assert out.isfinite().all()
        assert not out[~part.action_mask].any()


@pytest.mark.parametrize("name", ADVANTAGE_ESTIMATORS)
def test_whitened_exactly_where_the_entry_says_so(inputs, name):
    advantages, _ = estimate_advantages(name, inputs)
    chosen = advantages[inputs.action_mask]
    white = abs(chosen.mean().item()) < 1e-12 and abs(chosen.var(unbiased=False).item() - 1) < 1e-12
    assert white == ADVANTAGE_ESTIMATORS[name].whitens


def test_gae_without_a_critic_says_so(inputs):
    with pytest.raises(ValueError, match="gae needs the values of a critic"):
        estimate_advantages("gae", replace(inputs, values=None))


def test_only_gae_needs_a_critic(inputs):
    for name, entry in ADVANTAGE_ESTIMATORS.items():
        assert entry.needs_critic == (name == "gae")
        if name != "gae":
            estimate_advantages(name, replace(inputs, values=None))


def test_which_need_more_than_one_sample_per_prompt():
    assert NEEDS_GROUPS == ["reinforce_baseline", "rloo", "group_norm", "dr_grpo"]


def test_group_norm_adds_1e_9_to_the_std():
    """Rewards ±1e-9: the unbiased std is √2·1e-9."""
    rewards, one = torch.tensor([1e-9, -1e-9], dtype=torch.float64), torch.ones(2, 1, dtype=torch.bool)
    inputs = AdvantageInputs(rewards, torch.zeros(2, 1), one, torch.zeros(2), None, 1.0, 1.0, (-10.0, 10.0))
    expected = 1 / (math.sqrt(2.0) + 1)
    out = estimate_advantages("group_norm", inputs)[0].flatten().tolist()
    assert out == pytest.approx([expected, -expected], rel=1e-6)


def test_token_rewards_are_zero_outside_the_mask(inputs):
    poisoned = replace(inputs, kl_rewards=inputs.kl_rewards.masked_fill(~inputs.action_mask, math.nan))
    out = token_rewards(inputs.rewards, poisoned)
    assert torch.equal(out, token_rewards(inputs.rewards, inputs))
    assert not out[~inputs.action_mask].any()


CUSTOM = """
from openrlhf.algorithms.advantages import Estimator

def doubled(inputs):
    out = 2 * inputs.rewards.unsqueeze(1).expand(inputs.action_mask.shape)
    return out, out

white = Estimator(doubled, needs_groups=True, whitens=True)

def flat(inputs):
    return inputs.rewards, inputs.rewards
"""


@pytest.fixture
def custom(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(CUSTOM)
    return path


def test_a_function_from_a_file(inputs, custom):
    expected = torch.where(inputs.action_mask, 2 * inputs.rewards.unsqueeze(1), 0.0)
    for out in estimate_advantages(f"{custom}:doubled", inputs):
        assert torch.equal(out, expected)
    assert find_estimator(f"{custom}:doubled").whitens is False


def test_an_estimator_from_a_file_says_what_it_needs(inputs, custom):
    found = find_estimator(f"{custom}:white")
    assert isinstance(found, Estimator) and found.needs_groups
    chosen = estimate_advantages(f"{custom}:white", inputs)[0][inputs.action_mask]
    assert chosen.mean().item() == pytest.approx(0.0, abs=1e-12)
    assert chosen.var(unbiased=False).item() == pytest.approx(1.0)


def test_a_function_from_a_file_with_the_wrong_shape(inputs, custom):
    with pytest.raises(ValueError, match=r"mine.py:flat returned the shapes \(8,\) and \(8,\); .* \(8, 9\)"):
        estimate_advantages(f"{custom}:flat", inputs)


def test_unknown_name(inputs):
    with pytest.raises(ValueError, match=r"--advantage_estimator: there is no 'group_nrm' .did you mean group_norm"):
        estimate_advantages("group_nrm", inputs)
