"""Waits for Ray actors, with a clock and a ``ray.wait`` of our own: what is said meanwhile, and at the end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

ray = pytest.importorskip("ray")
from openrlhf.cluster import calls  # noqa: E402

pytestmark = pytest.mark.cluster


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """``answers``: reference → the second at which it is there."""
    state = SimpleNamespace(now=0.0, answers={})

    def wait(refs: list[str], num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        ready = [ref for ref in refs if state.answers.get(ref, 1e9) <= state.now + timeout][:1]
        state.now = max(state.now, state.answers[ready[0]]) if ready else state.now + timeout
        return ready, [ref for ref in refs if ref not in ready]

    monkeypatch.setattr(calls.time, "monotonic", lambda: state.now)
    monkeypatch.setattr(calls.ray, "wait", wait)
    monkeypatch.setattr(calls.ray, "get", lambda ref, timeout: f"{ref}!")
    return state


def test_a_long_wait_says_whom_it_waits_for(clock: Any, capsys: pytest.CaptureFixture[str]) -> None:
    clock.answers = {"a": 5.0, "b": 130.0}
    assert calls.await_all(["b", "a"], ["worker b", "worker a"], "update", 600.0) == ["b!", "a!"]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("worker b: update" in line and "worker a" not in line for line in lines)


def test_at_the_deadline_the_late_ones_are_named(clock: Any) -> None:
    clock.answers = {"a": 5.0}
    with pytest.raises(TimeoutError, match="^worker b did not answer update within 150 s"):
        calls.await_all(["a", "b"], ["worker a", "worker b"], "update", 150.0)
    assert clock.now == 150.0
