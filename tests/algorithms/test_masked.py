from __future__ import annotations

import math

import pytest
import torch

from openrlhf.algorithms import masked


def entries(x, mask):
    return [x[b][t].item() for b in range(len(x)) for t in range(len(x[b])) if mask[b][t]]


def test_sum_and_mean_are_over_true_entries(normal, mask):
    x = normal()
    kept = entries(x, mask)
    assert masked.masked_sum(x, mask).item() == pytest.approx(math.fsum(kept), rel=1e-12)
    assert masked.masked_mean(x, mask).item() == pytest.approx(math.fsum(kept) / len(kept), rel=1e-12)


def test_mean_of_nothing_is_zero(normal, mask):
    assert masked.masked_mean(normal(), torch.zeros_like(mask)).item() == 0.0


@pytest.mark.parametrize("shift_mean", [True, False])
@pytest.mark.parametrize("scale", [True, False])
def test_whiten_golden(normal, mask, shift_mean, scale):
    x = normal() * 3 + 5
    kept = entries(x, mask)
    mean = math.fsum(kept) / len(kept)
    variance = math.fsum((v - mean) ** 2 for v in kept) / len(kept)
    out = masked.whiten(x, mask, shift_mean, scale)
    for b, t in mask.nonzero().tolist():
        expected = (x[b, t].item() - mean) / (math.sqrt(variance) if scale else 1.0) + (0.0 if shift_mean else mean)
        assert out[b, t].item() == pytest.approx(expected, rel=1e-12)
    assert (out[~mask] == 0).all()


def test_whiten_divides_by_at_least_the_root_of_1e_8():
    x = torch.tensor([[1e-6, -1e-6]], dtype=torch.float64)
    assert masked.whiten(x, torch.ones_like(x, dtype=torch.bool)).tolist() == [pytest.approx([1e-2, -1e-2])]


def test_mean_of_one_entry_is_that_entry():
    assert masked.masked_mean(torch.tensor([3.0, 5.0]), torch.tensor([False, True])).item() == 5.0


@pytest.mark.parametrize("value", [0.1, 0.3, -1.7])
def test_whiten_of_equal_float32_entries_is_exactly_zero(value):
    for size in range(2, 100):
        x = torch.full((1, size), value)
        assert (masked.whiten(x, torch.ones_like(x, dtype=torch.bool)) == 0).all()


def test_statistics_of_float32_are_accumulated_in_float64(normal):
    """A large common part: float32 arithmetic would lose three digits of the deviations."""
    x = (1000 + 0.01 * normal(6)).float()
    exact = x.double().tolist()
    mean = math.fsum(exact) / 6
    squares = math.fsum((v - mean) ** 2 for v in exact)
    std = masked.group_std(x, torch.zeros(6, dtype=torch.int64))
    assert std.tolist() == pytest.approx([math.sqrt(squares / 5)] * 6, rel=1e-6)
    white = masked.whiten(x.unsqueeze(0), torch.ones(1, 6, dtype=torch.bool))[0]
    assert white.tolist() == pytest.approx([(v - mean) / math.sqrt(squares / 6) for v in exact], rel=1e-5)


def test_whiten_keeps_the_dtype(mask):
    assert masked.whiten(torch.ones(mask.shape), mask).dtype == torch.float32


GROUPS = torch.tensor([7, 2, 7, 2, 9, 7, 2, 2])
MEMBERS = torch.tensor([True, True, False, True, True, True, True, False])


def others(b, members, with_self):
    return [i for i in range(len(GROUPS)) if members[i] and GROUPS[i] == GROUPS[b] and (with_self or i != b)]


@pytest.mark.parametrize("members", [None, MEMBERS])
def test_group_statistics_golden(normal, members):
    x = normal(8)
    counted = torch.ones(8, dtype=torch.bool) if members is None else members
    mean, std = masked.group_mean(x, GROUPS, members), masked.group_std(x, GROUPS, members)
    left_out = masked.leave_one_out_mean(x, GROUPS, members)
    for b in range(8):
        group = [x[i].item() for i in others(b, counted, with_self=True)]
        rest = [x[i].item() for i in others(b, counted, with_self=False)]
        expected = math.fsum(group) / len(group)
        assert mean[b].item() == pytest.approx(expected, rel=1e-12)
        squares = math.fsum((v - expected) ** 2 for v in group)
        assert std[b].item() == pytest.approx(math.sqrt(squares / (len(group) - 1)) if len(group) > 1 else 0.0)
        assert left_out[b].item() == pytest.approx(math.fsum(rest) / len(rest) if rest else x[b].item(), rel=1e-12)


def test_a_group_without_members_has_mean_zero(normal):
    nobody = torch.zeros(8, dtype=torch.bool)
    for statistic in (masked.group_mean, masked.group_std, masked.leave_one_out_mean):
        assert (statistic(normal(8), GROUPS, nobody) == 0).all()


@pytest.mark.parametrize("size", [2, 3, 7, 64])
def test_equal_float32_rewards_have_exactly_their_own_mean(size):
    x, groups = torch.full((size,), 0.1), torch.zeros(size, dtype=torch.int64)
    assert torch.equal(masked.group_mean(x, groups), x)
    assert torch.equal(masked.leave_one_out_mean(x, groups), x)
    assert (masked.group_std(x, groups) == 0).all()


def test_token_weights(mask):
    weights = masked.token_mean_weights(mask)
    assert weights.sum().item() == pytest.approx(1.0)
    assert weights[mask].unique().numel() == 1
    assert (weights[~mask] == 0).all()


def test_sequence_weights(mask):
    weights = masked.sequence_mean_weights(mask)
    assert weights.sum().item() == pytest.approx(1.0)
    rows = [b for b in range(len(mask)) if mask[b].any()]
    for b in rows:
        share = 1 / int(mask[b].sum()) / len(rows)
        assert weights[b][mask[b]].tolist() == pytest.approx([share] * int(mask[b].sum()))
    assert (weights[~mask] == 0).all()


@pytest.mark.parametrize("weights", [masked.token_mean_weights, masked.sequence_mean_weights])
def test_a_single_token_has_all_the_weight(weights):
    assert weights(torch.tensor([[False, True], [False, False]])).tolist() == [[0.0, 1.0], [0.0, 0.0]]


def test_weights_of_parts_with_the_total_of_the_whole_are_the_weights_of_the_whole(mask):
    tokens, sequences = mask.sum(), mask.any(dim=1).sum()
    parts = mask.split(3)
    assert torch.equal(
        torch.cat([masked.token_mean_weights(p, tokens) for p in parts]), masked.token_mean_weights(mask)
    )
    by_row = torch.cat([masked.sequence_mean_weights(p, sequences) for p in parts])
    assert torch.equal(by_row, masked.sequence_mean_weights(mask))


@pytest.mark.parametrize("weights", [masked.token_mean_weights, masked.sequence_mean_weights])
def test_weights_of_an_empty_mask_are_zero(mask, weights):
    empty = torch.zeros_like(mask)
    assert (weights(empty) == 0).all()
    assert (weights(empty, torch.tensor(0)) == 0).all()
