"""The work that other processes report, phase by phase."""

from __future__ import annotations

import pytest

from openrlhf.training.busy import BusyClock
from openrlhf.training.log import Phases


def test_a_pool_adds_up_and_the_busiest_counts() -> None:
    clock = BusyClock()
    for pool, seconds in [("actor", 1.0), ("critic", 2.5), ("actor", 2.0)]:
        clock.add(pool, seconds)
    assert clock.take() == 3.0


def test_each_part_has_what_was_reported_since_the_last() -> None:
    clock = BusyClock()
    phases = Phases(clock)
    with phases("rollout"):
        clock.add("engines", 0.5)
    with phases("advantages"):
        pass
    with phases("sync"):
        clock.add("actor", 0.25)
    metrics = phases.metrics(tokens=1)
    assert {name: value for name, value in metrics.items() if name.startswith("busy/")} == {
        "busy/rollout": 0.5,
        "busy/sync": 0.25,
    }
    assert {"time/rollout", "time/advantages", "time/sync"} < metrics.keys()


def test_a_wait_that_is_over_names_its_phase_and_the_step() -> None:
    sentence = "in the phase sync after step 7: engine 0 is late; --deadline"
    with pytest.raises(TimeoutError, match=sentence), Phases(after=7)("sync"):
        raise TimeoutError("engine 0 is late")
