"""A Ray whose memory for objects is small: what goes to the disk, and what happens when there is no room either."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openrlhf.training.roles import PartLost, gather

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(300)]

DEADLINE_S = 120.0
STORE = 80 * 2**20  # bytes; Ray's least is 75 MB


@contextmanager
def group(folder: Path, **how: Any) -> Iterator[Any]:
    """Two actors on a Ray of their own."""
    from openrlhf import cluster  # noqa: F401  (Ray on loopback)
    from openrlhf.cluster.calls import GROUPS
    from openrlhf.cluster.group import Group
    from openrlhf.cluster.watch import Line, Watch

    class Clerk:  # in here it goes to its process by value, which then needs no torch
        def make(self, count: int, value: float) -> Any:
            return np.full(count, value)

        def total(self, numbers: Any) -> float:
            return float(numbers.sum())

    ray.init(
        address="local", include_dashboard=False, log_to_driver=False, configure_logging=False,
        object_store_memory=STORE, **how,
    )  # fmt: skip
    watching = Watch(folder / "stacks", DEADLINE_S)
    line = Line(watching, 4, "role")
    try:
        actors = [ray.remote(concurrency_groups=GROUPS)(Clerk).options(num_cpus=0).remote() for _ in range(2)]
        yield Group("actor", actors, threading.RLock(), False, line, DEADLINE_S)
    finally:
        watching.close()
        line.shutdown(wait=True)
        ray.shutdown()


def asked(actors: Any, verb: str, *args: Any) -> Any:
    """As the loop asks a role: from a line that its watch looks at."""
    return actors.line.submit(actors.call, verb, [args, args])


def test_r45_what_does_not_fit_goes_to_the_disk_and_comes_back(tmp_path: Path) -> None:
    with group(tmp_path) as actors:
        each = 6 * 2**20  # 48 MiB
        answers = actors.call("make", [(each, 1.0), (each, 2.0)])
        totals = actors.call("total", [(answer,) for answer in answers])
    assert totals == [1.0 * each, 2.0 * each]


def test_r45_without_room_on_the_disk_either_the_run_ends_with_a_sentence(tmp_path: Path) -> None:
    """To Ray every disk is full that is full to a ten-thousandth."""
    with group(tmp_path, _system_config={"local_fs_capacity_threshold": 1e-4}) as actors:
        large = 2**24  # of doubles: more than the store
        with pytest.raises(
            PartLost, match="^there is no room for what total is asked with, neither in Ray's memory nor"
        ):
            gather(asked(actors, "total", np.ones(large)), deadline_s=DEADLINE_S)
        with pytest.raises(PartLost, match="^actor worker . of 2 failed in make: there is no room for its answer, "):
            gather(asked(actors, "make", large, 1.0), deadline_s=DEADLINE_S)
        assert actors.call("total", [(np.ones(3),)] * 2) == [3.0] * 2
