"""pass@1 and pass@n against numbers worked out by hand."""

from __future__ import annotations

from openrlhf.training.pass_rates import pass_rates


def test_the_mean_and_the_best_of_each_prompt_by_source() -> None:
    """Source a: prompts with 1 of 4 and 0 of 4 right. Source b: one prompt, apart in the list."""
    sources = ["a", "b", "a", "a", "a", "a", "a", "b", "a", "a"]
    groups = [0, 1, 0, 2, 0, 2, 2, 1, 0, 2]
    rewards = [0.0, 0.5, 1.0, 0.0, 0.0, 0.0, 0.0, -1.5, 0.0, 0.0]
    assert pass_rates(sources, groups, rewards, 4) == {
        "eval_a_pass1": 0.125, "eval_a_pass4": 0.5, "eval_b_pass1": -0.5, "eval_b_pass4": 0.5,
    }  # fmt: skip


def test_every_prompt_counts_the_same_where_samples_were_left_out() -> None:
    """Of the second prompt one sample of three has a reward: (0 + 0 + 3)/3 and 4, not 7 in 4."""
    assert pass_rates(["x"] * 4, [0, 0, 0, 1], [0.0, 0.0, 3.0, 4.0], 3) == {"eval_x_pass1": 2.5, "eval_x_pass3": 3.5}


def test_one_sample_a_prompt_has_one_rate() -> None:
    assert pass_rates(["x", "x"], [0, 1], [0.0, 1.0], 1) == {"eval_x_pass1": 0.5}
