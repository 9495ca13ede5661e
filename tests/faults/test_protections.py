"""Without one of its protections a run does not survive: each time a test that passes otherwise fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults import protections
from tests.recipes import killed, test_async, test_resume
from tests.recipes.test_resume import model, sft  # noqa: F401  (fixtures)
from tests.training import test_update


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[], None]], None]]:
    """Takes a protection away from this process and from commands that run apart, until the test ends."""
    whole = [(owner, name, vars(owner)[name]) for owner, name in protections.PATCHED]

    def take(away: Callable[[], None]) -> None:
        monkeypatch.setattr(killed, "TAKE_AWAY", away)
        away()

    yield take
    for owner, name, value in whole:
        setattr(owner, name, value)


@pytest.mark.slow
def test_without_the_rename(sft: dict[str, Any], taken: Any) -> None:  # noqa: F811
    taken(protections.without_rename)
    with pytest.raises(AssertionError, match="global_step6"):
        test_resume.test_a_kill_inside_a_checkpoint(sft, "openrlhf.training.checkpoint_part:write_tensors", 2, 3)


@pytest.mark.slow
def test_without_comparing_files_with_the_manifest(
    sft: dict[str, Any],  # noqa: F811
    taken: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    taken(protections.without_comparing)
    with pytest.raises(AssertionError, match="PASSED OVER"):
        test_resume.test_a_damaged_checkpoint_is_passed_over_for_the_one_before(sft, monkeypatch, capsys, "flipped bit")


@pytest.fixture
def asynchronous(tiny_folder: Path, tmp_path: Path) -> dict[str, Any]:
    return test_async.run_flags(tiny_folder, tmp_path)


@pytest.mark.slow
def test_with_prompts_counted_when_they_are_handed_out(
    asynchronous: dict[str, Any], tmp_path: Path, taken: Any
) -> None:
    taken(protections.with_prompts_handed_out)
    with pytest.raises(AssertionError, match="Right contains"):
        test_async.test_a_killed_run_learns_from_each_prompt_once(asynchronous, tmp_path)


def test_without_the_vote_of_all_ranks(taken: Any) -> None:
    taken(protections.without_vote)
    with pytest.raises(AssertionError, match="0.0 == 1"):
        test_update.test_a_loss_that_one_of_two_ranks_finds_not_finite_costs_both_the_step()
