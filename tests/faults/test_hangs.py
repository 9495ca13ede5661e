"""Real Ray actors that hang, or die while nobody asks them: who says so, and what becomes of the run."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from openrlhf.training.roles import PartLost, gather

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(300)]

DEADLINE_S = 120.0


class Rank:
    """A member of a process group, as a training rank is."""

    def join(self, rank: int, world: int, port: int) -> None:
        import datetime

        import torch.distributed as dist

        dist.init_process_group(
            "gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world, timeout=datetime.timedelta(seconds=600)
        )

    def collective(self) -> None:
        import torch.distributed as dist

        dist.barrier()

    def wait_for_ever(self) -> None:
        threading.Event().wait(timeout=600)


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    from openrlhf import cluster  # noqa: F401  (Ray on loopback)

    ray.init(address="local", include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def spare(session: None) -> list[Any]:
    return []


def two_ranks(spare: list[Any]) -> list[Any]:
    """While a test waits, those of the next one start."""
    from openrlhf.cluster.calls import GROUPS

    while len(spare) < 4:
        spare.append(ray.remote(concurrency_groups=GROUPS)(Rank).options(num_cpus=0).remote())
    return [spare.pop(0), spare.pop(0)]


@pytest.fixture
def group(spare: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two ranks that are watched, in a process group. A hang is one of 15 seconds."""
    from openrlhf.cluster import watch
    from openrlhf.cluster.group import Group

    monkeypatch.setattr(watch, "SILENCE_S", 15.0)
    watching = watch.Watch(tmp_path / "stacks", DEADLINE_S)
    ranks = two_ranks(spare)
    group = Group("actor", ranks, threading.RLock(), False, watch.Line(watching, 4, "role"), DEADLINE_S)
    watching.add(group.names, ranks)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group.call("join", [(rank, 2, port) for rank in range(2)])
    watching.hangs_count = True
    yield group
    watching.close()
    for rank in ranks:
        ray.kill(rank)
    group.line.shutdown(wait=True)


def process_of(actor: Any) -> int:
    return int(ray.get(actor.__ray_call__.remote(lambda _: os.getpid()), timeout=DEADLINE_S))


def ends(future: Future[Any]) -> str:
    began = time.monotonic()
    with pytest.raises(PartLost) as end:
        gather(future, deadline_s=DEADLINE_S)
    assert time.monotonic() - began < DEADLINE_S
    return str(end.value)


def test_r05_an_idle_rank_that_dies_ends_whatever_is_waited_for(group: Any) -> None:
    """The run waits for something else meanwhile: a reward, say."""
    answered = threading.Event()
    reward = group.line.submit(answered.wait, 600)
    os.kill(process_of(group.workers[1]), signal.SIGKILL)
    assert "actor worker 1 of 2 died" in ends(reward)
    answered.set()
    assert "actor worker 1 of 2 died" in ends(group.submit_reason("collective"))  # so does all that is asked for later


def test_r06_a_rank_that_dies_in_a_collective_is_named(group: Any) -> None:
    pid = process_of(group.workers[1])
    os.kill(pid, signal.SIGSTOP)
    waits = group.submit_reason("collective")
    time.sleep(1)
    os.kill(pid, signal.SIGKILL)
    assert "actor worker 1 of 2 died" in ends(waits)


def test_r12_an_engine_that_hangs_is_ended(group: Any) -> None:
    """Then it counts as one that died, which is dealt with elsewhere, and the others go on."""
    from openrlhf.cluster.calls import RoleDied

    (engine,) = group.workers[1:]
    watch, name = group.line.watch, group.names[1]
    watch.add([name], [engine], engines=True)
    pid, until = process_of(engine), time.monotonic() + DEADLINE_S
    while watch._watched[name].place is None and time.monotonic() < until:
        time.sleep(0.1)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(RoleDied, match="actor worker 1 of 2 died in wait_for_ever"):
        gather(group.submit_reason("wait_for_ever"), deadline_s=DEADLINE_S)
    assert watch.cause is None


def test_r13_a_rank_that_hangs_is_named_and_all_stacks_are_written(group: Any, tmp_path: Path) -> None:
    pid = process_of(group.workers[1])
    os.kill(pid, signal.SIGSTOP)
    assert "actor worker 1 of 2 hangs: it has answered nothing for 15 s" in ends(group.submit_reason("collective"))
    group.line.watch.close()
    stacks = {file.stem: file.read_text() for file in (tmp_path / "stacks").iterdir()}
    assert stacks.keys() == {"driver", *group.names}
    assert "in barrier" in stacks["actor worker 0 of 2"]
    assert all("Thread 0x" in text or "Current thread" in text for text in stacks.values())


def test_r14_stacks_show_where_a_host_thread_waits(group: Any, tmp_path: Path) -> None:
    watch = group.line.watch
    group.deadline_s = 3.0
    with pytest.raises(TimeoutError, match="actor worker 0 of 2, actor worker 1 of 2 did not answer wait_for_ever"):
        gather(group.submit_reason("wait_for_ever"), deadline_s=DEADLINE_S)
    watch.write_stacks()
    for name in group.names:
        assert "in wait_for_ever" in (tmp_path / "stacks" / f"{name}.txt").read_text()


def test_r45_the_end_of_rays_head_is_told(session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a head that only listens."""
    from openrlhf.cluster import watch

    monkeypatch.setattr(watch, "HEAD_S", 1.0)
    head = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{head.getsockname()[1]}"
    monkeypatch.setattr(watch, "head_address", lambda: address)
    watching = watch.Watch(tmp_path / "stacks", DEADLINE_S)
    waits = watching.bound(Future())
    time.sleep(2 * watch.ASK_EVERY_S)
    assert not waits.done()
    head.close()
    assert ends(waits) == f"Ray's head, at {address}, is gone"
    watching.close()


def test_a_run_without_a_hang_leaves_no_stacks(group: Any, tmp_path: Path) -> None:
    gather(group.submit_reason("collective"), deadline_s=DEADLINE_S)
    group.line.watch.close()
    assert not (tmp_path / "stacks").exists()
