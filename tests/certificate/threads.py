"""Two ranks in one process."""

from __future__ import annotations

from pathlib import Path

from certificate.engine import GradientEngine
from certificate.methods import Method
from certificate.steps import Error, Outcome, largest_error, load_subject, rank_step
from tests.training.helpers import on_two_ranks


def two_ranks(method: Method, models: Path, examples: int) -> Error:
    subjects = [load_subject(method, models) for _ in range(2)]
    batch = method.examples(0).select(range(examples * method.rows))
    whole = subjects[0].step(batch)

    def rank(number: int, sum_over_ranks) -> Outcome:
        return rank_step(subjects[number], GradientEngine(subjects[number].model, sum_over_ranks, number, 2), batch)

    return largest_error(whole, *on_two_ranks(rank))
