"""What becomes of answers with rewards, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from openrlhf.data.processors import best_and_worst, best_answers, conditioned, standardised


def row(prompt: str, answer: str, reward: float) -> dict[str, object]:
    return {"input": prompt, "output": answer, "reward": reward}


ROWS = [
    row("a", "a1", 0.5), row("b", "b1", -1.0), row("a", "a2", 2.0), row("a", "a3", -3.0),
    row("b", "b2", -2.0), row("a", "a4", 2.0), row("c", "c1", 7.0),
]  # fmt: skip


def test_the_best_answer_of_each_input() -> None:
    assert best_answers(ROWS) == [row("a", "a2", 2.0), row("b", "b1", -1.0), row("c", "c1", 7.0)]


def test_the_best_and_the_worst_answer_of_each_input() -> None:
    pairs, alike = best_and_worst(ROWS)
    assert pairs == [
        {"prompt": "a", "chosen": "a2", "chosen_reward": 2.0, "rejected": "a3", "rejected_reward": -3.0},
        {"prompt": "b", "chosen": "b1", "chosen_reward": -1.0, "rejected": "b2", "rejected_reward": -2.0},
    ]
    assert alike == 1  # c has one answer


@pytest.mark.parametrize(
    "group",
    [
        [row("q", "same", 1.0), row("q", "same", 1.0)],
        [row("q", "same", 1.0), row("q", "same", 1.0000001)],  # another micro-batch, another rounding
        [row("q", "one", 1.0), row("q", "two", 1.0)],
    ],
)
def test_nothing_to_prefer_is_no_pair(group: list[dict[str, object]]) -> None:
    assert best_and_worst(group) == ([], 1)


def test_the_reward_stands_in_the_input() -> None:
    assert conditioned([row("Q: 1?", "2", 4.998), row("Q: 2?", "3", -0.5)]) == [
        row("Q: 1? <rm_score>: 5.00 ", "2", 4.998),
        row("Q: 2? <rm_score>: -0.50 ", "3", -0.5),
    ]


def test_a_template_and_a_prompt_that_looks_like_one() -> None:
    (only,) = conditioned([row("say {reward} and {input}", "x", 1.0)], template="[{reward}|{reward}] {input}\n")
    assert only["input"] == "[1.00|1.00] say {reward} and {input}\n"


def test_rewards_are_standardised_over_all_rows() -> None:
    values = [1e6 + x for x in (0.25, -1.5, 3.0, 0.125)]
    expected = (np.array(values) - np.mean(values)) / np.std(values, ddof=1)
    assert standardised(values) == pytest.approx(expected.tolist(), rel=1e-9)
    rows = conditioned([row("a", "x", 1.0), row("a", "y", 3.0)], normalize=True)
    assert [r["input"] for r in rows] == ["a <rm_score>: -0.71 ", "a <rm_score>: 0.71 "]
    assert [r["reward"] for r in rows] == pytest.approx([-(0.5**0.5), 0.5**0.5])


@pytest.mark.parametrize("rewards", [[2.0], [2.0, 2.0, 2.0]])
def test_no_spread_to_divide_by(rewards: list[float]) -> None:
    with pytest.raises(ValueError, match="--normalize_reward: .* do not differ"):
        conditioned([row("a", "x", reward) for reward in rewards], normalize=True)


def test_the_rows_that_came_in_are_left_alone() -> None:
    rows = [row("a", "x", 1.0), row("a", "y", 3.0)]
    conditioned(rows, normalize=True)
    assert rows == [row("a", "x", 1.0), row("a", "y", 3.0)]
