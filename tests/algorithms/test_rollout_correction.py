from __future__ import annotations

import math

import pytest
import torch

from openrlhf.algorithms.rollout_correction import ROLLOUT_CORRECTIONS, find_correction

LOW, HIGH = 0.5, 2.0


def slow(name, old, sampled, places):
    """The weights of one answer from their definitions; ``places`` are its action tokens."""
    weights = {t: math.exp(old[t] - sampled[t]) for t in places}
    if name == "tis":
        return {t: min(max(w, LOW), HIGH) for t, w in weights.items()}
    if name == "icepop":
        return {t: w if LOW <= w <= HIGH else 0.0 for t, w in weights.items()}
    mean = math.prod(weights.values()) ** (1 / len(weights))
    return {t: w if LOW <= mean <= HIGH else 0.0 for t, w in weights.items()}


@pytest.mark.parametrize("name", ROLLOUT_CORRECTIONS)
def test_golden(normal, mask, name):
    old, sampled = normal(), normal()
    out = ROLLOUT_CORRECTIONS[name](old, sampled, mask, LOW, HIGH)
    for b in range(len(mask)):
        places = [t for t in range(mask.shape[1]) if mask[b, t]]
        for t, weight in slow(name, old[b].tolist(), sampled[b].tolist(), places).items() if places else ():
            assert out[b, t].item() == pytest.approx(weight, rel=1e-9)
    assert (out[~mask] == 1).all()


def test_the_three_differ(normal, mask):
    old, sampled = normal(), normal()
    tis, icepop, sequence = (f(old, sampled, mask, LOW, HIGH) for f in ROLLOUT_CORRECTIONS.values())
    assert not torch.equal(tis, icepop) and not torch.equal(icepop, sequence)
    assert ((sequence == 0) & mask).any() and (((sequence < LOW) | (sequence > HIGH)) & (sequence > 0)).any()


@pytest.mark.parametrize("name", ROLLOUT_CORRECTIONS)
def test_where_both_agree_nothing_is_corrected(normal, mask, name):
    same = normal()
    assert torch.equal(ROLLOUT_CORRECTIONS[name](same, same, mask, LOW, HIGH), torch.ones_like(same))


@pytest.mark.parametrize("name", ROLLOUT_CORRECTIONS)
def test_masked_slots_do_not_matter_and_nothing_has_a_gradient(normal, mask, name):
    old, sampled = normal().requires_grad_(), normal()
    clean = ROLLOUT_CORRECTIONS[name](old, sampled, mask, LOW, HIGH)
    assert not clean.requires_grad
    assert torch.equal(clean, ROLLOUT_CORRECTIONS[name](old, sampled.masked_fill(~mask, math.nan), mask, LOW, HIGH))


def test_unknown_name():
    with pytest.raises(ValueError, match="--vllm_is_correction_type: there is no 'seq-mask'"):
        find_correction("seq-mask")
