"""The certificate's own checks, on one seed each; so a change that breaks an invariance breaks the tests."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path

import pytest

from certificate import saved
from certificate.methods import METHODS
from certificate.statements import STATEMENTS, prepared
from certificate.steps import subject
from openrlhf.types import Batch
from tests.certificate.threads import two_ranks

FAST = ("sft", "kd", "rm", "prm", "dpo", "kto", "ppo, policy at temperature 1.0", "ppo, critic", "ppo, icepop")
CASES = [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in METHODS]  # one of each forward


@pytest.mark.parametrize("method", CASES)
@pytest.mark.parametrize("id", STATEMENTS)
def test_nothing_changes_a_gradient(id: str, method: str, models: Path) -> None:
    statement = STATEMENTS[id]
    error = statement.check(subject(METHODS[method], models), 0)
    if error is None:
        pytest.skip("says nothing about this method")
    # Log-probs of the step before are kept, and KTO's baseline is summed, in float32; all else is float64.
    narrow = id == "I7" or (id, method) == ("I6", "kto")
    assert error.gradient <= (statement.tolerance if narrow else min(statement.tolerance, 1e-9))
    assert error.metrics <= statement.tolerance


@pytest.mark.parametrize("examples", [8, 7])
@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_are_one(method: str, examples: int, models: Path) -> None:
    """Also when a rank gets an example without loss. Here the ranks are threads, in the certificate processes."""
    error = two_ranks(METHODS[method], models, examples)
    assert error.gradient <= (1e-6 if method == "kto" else 1e-9)  # KTO's baseline is summed over ranks in float32
    assert error.metrics <= 1e-6


@pytest.mark.parametrize("kind", saved.SAVED)
def test_what_is_saved_is_what_transformers_loads(kind: str, models: Path, tmp_path: Path) -> None:
    assert saved.error(saved.SAVED[kind], models, tmp_path) <= saved.TOLERANCE


def test_the_poison_reaches_every_field_of_floats(models: Path) -> None:
    """A new field of ``Batch`` belongs into the examples of a method."""
    filled = set().union(*(prepared(subject(method, models), 0).tensors() for method in METHODS.values()))
    floats = {f.name for f in fields(Batch) if "float32" in comment(f.name)} - {"scores", "turn_rewards"}
    # Scores filter, never train; an agent's turn rewards are advantages before the update.
    assert floats <= filled


def comment(field: str) -> str:
    return next(line for line in inspect.getsource(Batch).splitlines() if line.strip().startswith(f"{field}:"))


def test_the_examples_are_not_trivial(models: Path) -> None:
    """Both sides of PPO's clip and of KTO's baseline, ragged rows, gaps between the chosen tokens."""
    steps = {name: subject(method, models).step(method.examples(0)).metrics for name, method in METHODS.items()}
    assert 0.1 < steps["ppo, policy at temperature 1.0"]["clip_ratio"] < 0.9
    assert steps["kto"]["kl_baseline"] > 0.05
    accuracies = {name: metrics["accuracy"] for name, metrics in steps.items() if "accuracy" in metrics}
    del accuracies["prm, whole vocabulary"]  # of 97 tokens a random model never picks the right one
    assert all(0 < accuracy < 1 for accuracy in accuracies.values()), accuracies
    batch = METHODS["sft"].examples(0)
    assert len(set(batch.lengths.tolist())) > 4
    assert ((batch.action_mask[:, :-2] & ~batch.action_mask[:, 1:-1] & batch.action_mask[:, 2:]).any(1)).sum() > 2
