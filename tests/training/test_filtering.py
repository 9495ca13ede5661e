"""Dynamic filtering by hand: which groups are kept, how many prompts are asked, and where the data stands."""

from __future__ import annotations

from concurrent.futures import Future

import pytest
import torch

from openrlhf.config.groups import RolloutConfig
from openrlhf.data.sampler import Cursor
from openrlhf.rollout.engine import step_seed
from openrlhf.training.ahead import Asked
from openrlhf.training.filtering import ask_until_full, groups, informative
from openrlhf.training.roles import done
from openrlhf.types import Prompt, Sample

WRONG, RIGHT, MIXED = (0.0, 0.0), (1.0, 1.0), (1.0, 0.0)


def sample(group: int, score: float | None) -> Sample:
    return Sample(torch.tensor([5]), torch.tensor([True]), group=group, reward=-3.0, score=score)


def test_a_group_is_kept_when_its_mean_lies_strictly_inside() -> None:
    """Means 0, 1/3, 1, 2/3, and one that differs from 1 by rounding alone."""
    scores = {4: [0.0, 0.0, 0.0], 1: [0.0, 1.0, 0.0], 7: [1.0, 1.0, 1.0], 2: [1.0, 0.5, 0.5], 3: [1 - 1e-7] * 3}
    samples = [sample(group, scores[group][i]) for i in range(3) for group in scores]
    assert [s.group for s in informative(samples, 0.0, 1.0)] == [1, 2] * 3
    assert {s.group for s in informative(samples, 1 / 3, 1.0)} == {2}
    assert {s.group for s in informative(samples, -1.0, 0.5)} == {4, 1}


def test_without_a_score_there_is_nothing_to_filter_by() -> None:
    with pytest.raises(ValueError, match="--dynamic_filtering needs a score"):
        informative([sample(0, None)], 0.0, 1.0)


class Scorer:
    """Answers prompt i twice, with the scores ``answers[i]``."""

    def __init__(self, answers: list[tuple[float, float]]) -> None:
        self.answers = answers
        self.asked: list[list[int]] = []
        self.seeds: list[int] = []

    def collect(self, prompts: list[Prompt], seed: int) -> Future[list[Sample]]:
        self.asked.append([prompt.id for prompt in prompts])
        self.seeds.append(seed)
        return done([sample(g, score) for g, prompt in enumerate(prompts) for score in self.answers[prompt.id]])

    def evaluate(self, prompts: list[Prompt], seed: int) -> Future[list[Sample]]:
        raise AssertionError

    def sync(self, version: int) -> Future[None]:
        raise AssertionError


def follow(answers: list[tuple[float, float]], wanted: int) -> tuple[Scorer, list[tuple[int, int, Cursor]]]:
    """All rollouts over one episode of ``answers``: the numbers of prompts asked and kept, and the place afterwards."""
    engines = Scorer(answers)
    stream = [([Prompt(i, "", [5])], Cursor(0, i + 1)) for i in range(len(answers))]
    config = RolloutConfig(rollout_batch_size=wanted, n_samples_per_prompt=2, dynamic_filtering=True)
    rollouts: list[Asked] = list(ask_until_full(engines, stream, config, seed=33, first=7, deadline_s=60))
    assert [rollout.step for rollout in rollouts] == list(range(7, 7 + len(rollouts)))
    return engines, [(len(r.prompts), groups(r.samples.result(timeout=0)), r.cursor) for r in rollouts]


def test_missing_groups_are_asked_for_until_the_batch_is_full() -> None:
    engines, found = follow([MIXED, WRONG, RIGHT, WRONG, MIXED, MIXED, MIXED], wanted=3)
    assert engines.asked == [[0, 1, 2], [3, 4], [5], [6]]  # 1 of 3, 2 of 3, 3 of 3; the last rollout is smaller
    assert found == [(6, 3, Cursor(0, 6)), (1, 1, Cursor(0, 7))]
    # The first part of a step has the seed of a run that does not filter.
    assert engines.seeds == [step_seed(33, 7), step_seed(33, 7, 1), step_seed(33, 7, 2), step_seed(33, 8)]
    assert len(set(engines.seeds)) == 4


def test_ahead_the_next_prompts_are_asked_before_a_rollout_is_learned_from() -> None:
    """The same rollouts as without, each asked for one step earlier up to where prompts gave way to others."""
    answers = [MIXED, WRONG, RIGHT, MIXED, MIXED, WRONG, MIXED, MIXED]
    engines = Scorer(answers)
    stream = [([Prompt(i, "", [5])], Cursor(0, i + 1)) for i in range(len(answers))]
    config = RolloutConfig(rollout_batch_size=2, n_samples_per_prompt=2, dynamic_filtering=True)
    seen = []
    for rollout in ask_until_full(engines, stream, config, seed=33, first=7, deadline_s=60, ahead=True):
        seen.append(([p.id for p in rollout.prompts], rollout.cursor, len(engines.asked)))
    assert engines.asked == [[0, 1], [2], [3], [4, 5], [6], [7]]
    assert seen == [([0, 1, 2, 3], Cursor(0, 4), 4), ([4, 5, 6], Cursor(0, 7), 6), ([7], Cursor(0, 8), 6)]
    alone, found = follow(answers, wanted=2)
    assert (alone.asked, alone.seeds) == (engines.asked, engines.seeds)
    assert [cursor for *_, cursor in found] == [cursor for _, cursor, _ in seen]


def test_what_was_accepted_is_used_when_the_prompts_end(capsys: pytest.CaptureFixture[str]) -> None:
    _, found = follow([WRONG, MIXED, RIGHT], wanted=2)
    assert found == [(3, 1, Cursor(0, 3))]
    assert capsys.readouterr().out == ""


def test_where_nothing_is_left_the_run_ends_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    _, found = follow([MIXED, WRONG, RIGHT], wanted=1)
    assert found == [(1, 1, Cursor(0, 1))]
    assert "--dynamic_filtering kept none of the last 2 prompts" in capsys.readouterr().out
