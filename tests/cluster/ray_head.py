"""A Ray cluster of one machine with its job server, for tests that submit jobs."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.recipes.helpers import free_port

PROGRAMS = Path(sys.executable).parent
RAY = str(PROGRAMS / "ray")


def loopback(token: Path) -> dict[str, str]:
    """The environment of a Ray of our own: on loopback, and only for who knows the token."""
    token.write_text(secrets.token_hex(16))
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": tempfile.mkdtemp(prefix="ray"),  # short: Unix sockets lie in there
    }


@contextmanager
def ray_head(folder: Path, **variables: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Inside, the cluster takes jobs: (address of its job server, environment). ``variables`` are for its jobs."""
    environment = loopback(folder / "token")
    port, dashboard, agent = free_port(), free_port(), free_port()
    command = [
        *(RAY, "start", "--head", "--block", "--num-cpus=2", f"--port={port}"),
        *(f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
    ]
    log = (folder / "head.log").open("w")
    head = subprocess.Popen(
        command, env=environment | variables, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        wait_for_jobs(address, environment, head)
        yield address, environment
    finally:
        end(head)
        log.close()
        shutil.rmtree(environment["RAY_TMPDIR"], ignore_errors=True)


def wait_for_jobs(address: str, environment: dict[str, str], head: subprocess.Popen[bytes]) -> None:
    """The job server answers before its agent, which starts jobs, is up."""
    until = time.monotonic() + 120
    while time.monotonic() < until and head.poll() is None:
        asked = subprocess.run(
            [RAY, "job", "submit", f"--address={address}", "--", "true"],
            env=environment, capture_output=True, timeout=120, check=False,
        )  # fmt: skip
        if asked.returncode == 0:
            return
        time.sleep(1)
    raise TimeoutError("the Ray head ran no job within 120 s")


def end(head: subprocess.Popen[bytes]) -> None:
    """The head ends its children when it is asked to end."""
    head.terminate()
    try:
        head.wait(timeout=120)
    except subprocess.TimeoutExpired:
        head.kill()
        head.wait(timeout=120)
