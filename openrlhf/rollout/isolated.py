"""A reward function in a process of its own, which a time limit can end and no mistake of the function can harm us.

The two speak JSON over a socket, each message after its length (``reward_child.py`` is the other end). What the
function prints goes where our own output goes.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from typing import Any

from openrlhf.rollout.rewards import RewardFailed, Rewards, Texts

MOMENT_SECONDS = 5.0  # a process that crashed closes its socket before it is gone
LOOK_SECONDS = 0.1  # how often a wait looks whether the process is still there


class IsolatedFunction:
    """``reward_func`` of ``file`` as a reward function; one call at a time.

    A call raises RewardFailed, naming the function, when it raises, answers something wrong, ends its process or takes
    more than ``timeout_s``. The process is then started anew by the next call if it has to be. So does the constructor
    when the file cannot be loaded.
    """

    def __init__(self, file: str, timeout_s: float) -> None:
        self.file = file
        self.timeout_s = timeout_s
        self.child: Child | None = None
        self._exchange(None)

    def __call__(self, queries: Texts, prompts: Texts, labels: Texts) -> Rewards:
        return Rewards(**self._exchange({"queries": queries, "prompts": prompts, "labels": labels}))

    def _exchange(self, message: dict[str, Any] | None) -> dict[str, Any]:
        until = time.monotonic() + self.timeout_s
        try:
            if self.child is None:
                self.child = Child(self.file)
                loaded = self.child.receive(until)
                if "failed" in loaded:
                    self._kill()
                self._check(loaded)
            if message is None:
                return {}
            self.child.send(message, until)
            return self._check(self.child.receive(until))
        except TimeoutError:
            self._kill()
            reason = f"did not answer within --reward_timeout {self.timeout_s:g} s"
        except OSError:
            reason = self._end()
        raise RewardFailed(f"reward_func of {self.file} {reason}")

    def _check(self, answer: dict[str, Any]) -> dict[str, Any]:
        if "failed" in answer:
            reason = str(answer["failed"])
            raise RewardFailed(reason if reason.startswith("--") else f"reward_func of {self.file}: {reason}")
        return answer

    def _end(self) -> str:
        """How the process ended. What it may have started is ended too."""
        child, self.child = self.child, None
        assert child is not None
        return child.end()

    def _kill(self) -> None:
        child, self.child = self.child, None
        assert child is not None
        child.kill()


class Child:
    """The process and our end of the socket."""

    def __init__(self, file: str) -> None:
        self.socket, theirs = socket.socketpair()
        # -u: what the function printed is out before its answer is, and not lost when the process is ended.
        command = [sys.executable, "-u", "-m", "openrlhf.rollout.reward_child", file, str(theirs.fileno())]
        # Its standard input ends when we do, which tells it to end. Its own session: it is ended with all it started.
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, pass_fds=[theirs.fileno()], start_new_session=True
        )
        theirs.close()
        self.ended = weakref.finalize(self, _kill, self.process)

    def send(self, message: dict[str, Any], until: float) -> None:
        """Raises TimeoutError, or OSError when the process is gone."""
        content = json.dumps(message).encode()
        self.socket.settimeout(max(until - time.monotonic(), 0.001))
        self.socket.sendall(len(content).to_bytes(8, "big") + content)

    def receive(self, until: float) -> dict[str, Any]:
        """Raises as ``send``."""
        length = int.from_bytes(self._read(8, until), "big")
        answer: dict[str, Any] = json.loads(self._read(length, until))
        return answer

    def kill(self) -> None:
        """End it and all it started."""
        self.ended()
        self.socket.close()

    def end(self) -> str:
        """Say how it ended by itself, for which it gets a moment, and end what it started."""
        until = time.monotonic() + MOMENT_SECONDS
        while not (gone := _is_gone(self.process)) and time.monotonic() < until:
            time.sleep(0.01)
        self.kill()
        return _ending(self.process.returncode) if gone else "broke off"

    def _read(self, count: int, until: float) -> bytes:
        content = bytearray()
        while len(content) < count:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self.socket.settimeout(min(left, LOOK_SECONDS))
            gone = _is_gone(self.process)  # asked first: what it said before its end is read still
            try:
                part = self.socket.recv(min(count - len(content), 2**20))
            except TimeoutError:
                if gone:  # something it started may hold the socket open
                    raise ConnectionResetError from None
                continue
            if not part:
                raise ConnectionResetError
            content += part
        return bytes(content)


def _is_gone(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended. It is not reaped, so that nobody else gets its number while we may still send signals."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):  # when no one is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
    if process.stdin is not None:
        process.stdin.close()


def _ending(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended its process with code {code}"
