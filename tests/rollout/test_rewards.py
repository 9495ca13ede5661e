import pytest
import torch

from openrlhf.rollout.rewards import call_reward_function, load_reward_function

ASK = (["q1", "q2"], ["p1", "p2"], ["l1", "l2"])


@pytest.mark.parametrize("answer", [[1, 0.5], torch.tensor([1.0, 0.5]), (1.0, 0.5), {"rewards": [1, 0.5]}])
def test_a_list_a_tensor_and_a_dict_mean_the_same(answer):
    result = call_reward_function(lambda queries, prompts, labels: answer, *ASK)
    assert result.rewards == [1.0, 0.5]
    assert result.scores == [1.0, 0.5]


def test_scores_and_extra_logs_are_kept_apart():
    answer = {"rewards": [2, 3], "scores": [0, 1], "extra_logs": {"format": [1, 1]}}
    result = call_reward_function(lambda queries, prompts, labels: answer, *ASK)
    assert (result.scores, result.extra_logs) == ([0.0, 1.0], {"format": [1.0, 1.0]})


def test_a_score_of_zero_is_a_score():
    answer = {"rewards": [2, 3], "scores": [0, 0]}
    assert call_reward_function(lambda *asked: answer, *ASK).scores == [0.0, 0.0]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([1.0], r"rewards has 1 entries for 2 samples: \[1.0\]"),
        ([1.0, float("nan")], r"rewards\[1\] is nan"),
        ([1.0, float("inf")], r"rewards\[1\] is inf"),
        (None, "must be 2 numbers, not None"),
        (["good", "bad"], r"rewards must be 2 numbers, not \['good', 'bad'\]"),
        (["1.0", 0.5], r"rewards must be 2 numbers, not \['1.0', 0.5\]"),
        ("12", "rewards must be 2 numbers, not '12'"),
        ({"rewards": {0: 1.0, 1: 0.5}}, "rewards must be 2 numbers, not {0"),
        (0.5, "rewards must be 2 numbers, not 0.5"),
        ({"rewards": [1, 2], "extra_logs": [1, 2]}, r"extra_logs must be a dict of lists, not \[1, 2\]"),
        ({"rewards": [1, 2], "extra_logs": {"a": [1, None]}}, r"a must be 2 numbers, not \[1, None\]"),
        ({"reward": [1, 2]}, "must have 'rewards'"),
        ({"rewards": [1, 2], "scores": [1]}, "scores has 1 entries"),
    ],
)
def test_a_wrong_answer_is_named(answer, message):
    with pytest.raises(ValueError, match=message):
        call_reward_function(lambda queries, prompts, labels: answer, *ASK)


def test_the_function_sees_queries_prompts_and_labels_in_order(tmp_path):
    file = tmp_path / "my_reward.py"
    file.write_text(
        "def reward_func(queries, prompts, labels):\n"
        "    return [len(''.join(row)) for row in zip(queries, prompts, labels)]\n"
    )
    function = load_reward_function(str(file))
    assert call_reward_function(function, ["a", "bb"], ["", "c"], ["x", ""]).rewards == [2.0, 3.0]


def test_a_missing_file_and_a_missing_function_are_named(tmp_path):
    with pytest.raises(ValueError, match="no such Python file"):
        load_reward_function(str(tmp_path / "none.py"))
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n")
    with pytest.raises(ValueError, match="must define reward_func"):
        load_reward_function(str(empty))
