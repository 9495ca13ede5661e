"""What a supervised run says of a long phase, and how it ends when it hangs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from openrlhf.training import pulse
from openrlhf.training.pulse import Pulse

# Of three ranks one is stopped after step 3, and one has a thread that waits for ever.
RANKS = """
import datetime, os, signal, sys, threading, time
from pathlib import Path
import torch.distributed as dist
from openrlhf.training import pulse

pulse.SAY_S, pulse.BEAT_S = 1.0, 0.2
os.environ.update(RANK=sys.argv[1], WORLD_SIZE="3", MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[2])
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=600))
watched = pulse.Pulse(Path(sys.argv[3]), 15.0)
watched.enter("update", 2)
dist.barrier()
time.sleep(2)
watched.enter("update", 3)
if sys.argv[1] == "1":
    os.kill(os.getpid(), signal.SIGSTOP)
if sys.argv[1] == "2":
    threading.Event().wait(timeout=600)
dist.barrier()
"""


@pytest.fixture
def store() -> dist.Store:
    return dist.HashStore()


def beating(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rank: int, store: dist.Store, deadline: float) -> Pulse:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(pulse, "_store", lambda: store)
    return Pulse(tmp_path / "stacks", deadline)


def test_a_long_phase_says_whom_it_waits_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: dist.Store, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pulse, "SAY_S", 0.2)
    monkeypatch.setattr(pulse, "BEAT_S", 0.05)
    monkeypatch.setattr(pulse, "SILENT_BEATS", 1000)
    behind = beating(monkeypatch, tmp_path, 1, store, 600)
    ahead = beating(monkeypatch, tmp_path, 0, store, 600)
    behind.enter("update", 6)
    ahead.enter("update", 6)
    ahead.enter("checkpoint", 7)
    shown, until = "", time.monotonic() + 60
    expected = "waiting for rank 1, in the phase update after step 6 of at most 600 s"
    while expected not in shown and time.monotonic() < until:
        time.sleep(0.05)
        shown += capfd.readouterr().err
    ahead.close()
    behind.close()
    assert "rank 0 is in the phase checkpoint after step 7 for " in shown and expected in shown
    assert not (tmp_path / "stacks").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ranks_that_hang_end_the_others_with_the_stacks_of_all(tmp_path: Path) -> None:
    """R13 and R14 of a supervised run."""
    server = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    stacks = tmp_path / "stacks"
    environment = {**os.environ, "TORCHELASTIC_USE_AGENT_STORE": "True"}  # the store is ours, as under torchrun
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANKS, str(rank), str(server.port), str(stacks)], stderr=subprocess.PIPE, text=True,
            env=environment,
        )
        for rank in range(3)
    ]  # fmt: skip
    try:
        _, said = ranks[0].communicate(timeout=200)
        ranks[2].wait(timeout=60)
        until = time.monotonic() + 60
        while "File" not in (stacks / "rank 1.txt").read_text() and time.monotonic() < until:
            time.sleep(0.1)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait(timeout=60)
    assert ranks[0].returncode == ranks[2].returncode == pulse.HANGS, said
    assert "rank 0 is in the phase update after step 3 for " in said and "longer than --deadline" in said
    assert "waiting for rank 1, which has said nothing for " in said
    assert "in barrier" in (stacks / "rank 0.txt").read_text()
    assert "in wait" in (stacks / "rank 2.txt").read_text()
    assert "File" in (stacks / "rank 1.txt").read_text()
