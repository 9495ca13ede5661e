"""Everything that is sampled has a seed of its own, in runs of neighbouring seeds too."""

from __future__ import annotations

from itertools import product

from openrlhf.rollout.engine import request_seed, step_seed


def test_no_step_part_or_request_of_neighbouring_runs_shares_a_seed() -> None:
    steps = {step_seed(*place) for place in product(range(40, 50), range(200), range(3))}
    assert len(steps) == 10 * 200 * 3
    requests = {request_seed(seed, index) for seed in sorted(steps)[:50] for index in range(100)}
    assert len(requests) >= 50 * 100 - 2  # of four bytes: 0.003 pairs are alike by chance


def test_seeds_are_the_same_in_every_process() -> None:
    """A resumed run, on another machine, draws what it would have drawn."""
    assert step_seed(42, 1) == 14251185979612571652
    assert request_seed(42, 0) == 361111614
