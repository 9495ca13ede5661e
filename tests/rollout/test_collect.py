"""From prompts to samples: groups, order, masks, and what the reward function sees and says."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch

from openrlhf.config.groups import RolloutConfig
from openrlhf.rollout.collect import collect, sampling_params
from openrlhf.rollout.engine import Completion, SamplingParams
from openrlhf.rollout.rewards import RewardFailed, Rewards, failed, joined
from openrlhf.types import Prompt, Sample, collate

PROMPTS = [Prompt(4, "four", [10, 11], "L4", "maths"), Prompt(9, "nine", [12], "L9"), Prompt(4, "four", [10, 11], "L4")]
PARAMS = SamplingParams()


class Counting:
    """Answers the n-th request with n + 1 tokens, 50 + n each."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.params: list[SamplingParams] = []

    def generate(self, prompts: list[list[int]], params: SamplingParams) -> list[Completion]:
        self.asked += prompts
        self.params.append(params)
        return [
            Completion([50 + n] * (n + 1), [-0.5 * n - 0.25] * (n + 1), n == 1, weight_versions=[3 + n] * (n + 1))
            for n in range(len(prompts))
        ]

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None: ...

    def sleep(self) -> None: ...

    def wake(self) -> None: ...


class Numbers:
    """A tokenizer that writes ids as numbers."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        assert not skip_special_tokens
        return " ".join(map(str, ids))


def collected(n: int = 2, function=None) -> tuple[list[Sample], Counting]:
    engine = Counting()
    return collect(PROMPTS, engine, PARAMS, n, Numbers(), function), engine


def test_samples_of_a_prompt_stand_together_in_the_order_of_the_prompts() -> None:
    samples, engine = collected()
    assert engine.asked == [[10, 11], [10, 11], [12], [12], [10, 11], [10, 11]]
    assert [s.prompt for s in samples] == ["four", "four", "nine", "nine", "four", "four"]
    assert [s.label for s in samples] == ["L4", "L4", "L9", "L9", "L4", "L4"]
    assert [s.source for s in samples] == ["maths", "maths", "default", "default", "default", "default"]


def test_a_prompt_twice_in_a_batch_makes_two_groups() -> None:
    assert [s.group for s in collected()[0]] == [0, 0, 1, 1, 2, 2]


def test_the_engines_own_tokens_and_log_probs_are_kept() -> None:
    samples, _ = collected()
    third = samples[2]
    assert third.tokens.tolist() == [12, 52, 52, 52]
    assert third.action_mask.tolist() == [False, True, True, True]
    assert third.rollout_log_probs.tolist() == [0.0, -1.25, -1.25, -1.25]
    assert [s.truncated for s in samples] == [False, True, False, False, False, False]
    assert third.weight_versions.tolist() == [0, 5, 5, 5]


def test_without_a_reward_function_there_is_no_reward() -> None:
    samples, _ = collected()
    assert all(s.reward is None and s.score is None for s in samples)
    assert collate(samples, 0).rewards is None


def test_the_function_sees_texts_prompts_and_labels_of_each_sample() -> None:
    seen = []

    def reward(queries, prompts, labels):
        seen.append((queries, prompts, labels))
        return list(range(len(queries)))

    samples, _ = collected(1, reward)
    assert seen == [(["10 11 50", "12 51 51", "10 11 52 52 52"], ["four", "nine", "four"], ["L4", "L9", "L4"])]
    assert [s.reward for s in samples] == [s.score for s in samples] == [0.0, 1.0, 2.0]


def test_scores_and_extra_logs_reach_their_sample() -> None:
    answer = {"rewards": [1, 2, 3], "scores": [0, 1, 0], "extra_logs": {"format": [7, 8, 9], "words": [1, 1, 0]}}
    samples, _ = collected(1, lambda *texts: answer)
    assert [s.score for s in samples] == [0.0, 1.0, 0.0]
    assert [s.metrics for s in samples] == [
        {"format": 7.0, "words": 1.0}, {"format": 8.0, "words": 1.0}, {"format": 9.0, "words": 0.0}
    ]  # fmt: skip


def test_a_wrong_number_of_rewards_is_refused() -> None:
    with pytest.raises(ValueError, match="2 entries for 3 samples"):
        collected(1, lambda *texts: [1.0, 2.0])


def test_samples_whose_reward_failed_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    def partly(queries, prompts, labels):
        return joined([Rewards([1.0], [1.0]), failed(1, "too slow"), Rewards([3.0], [0.5], {"words": [4.0]})])

    samples, _ = collected(1, partly)
    assert [(s.prompt, s.group, s.reward, s.score) for s in samples] == [("four", 0, 1.0, 1.0), ("four", 2, 3.0, 0.5)]
    assert [s.metrics for s in samples] == [{}, {"words": 4.0}]
    assert "1 of 3 samples got no reward and are left out: too slow" in caplog.text


def test_no_reward_at_all_is_an_end() -> None:
    with pytest.raises(RewardFailed, match="none of 3 samples got a reward: too slow"):
        collected(1, lambda *texts: failed(3, "too slow"))


def test_the_flags_become_sampling_parameters() -> None:
    rollout = RolloutConfig(temperature=0.7, top_p=0.9, generate_max_len=33, stop_strings=("a", "b"))
    expected = SamplingParams(0.7, 0.9, max_new_tokens=33, stop_token_ids=(1, 2), stop_strings=("a", "b"), seed=5)
    assert sampling_params(rollout, (1, 2), 5) == expected
