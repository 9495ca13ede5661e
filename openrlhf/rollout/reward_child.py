"""The process of a reward function: ``python -m openrlhf.rollout.reward_child FILE SOCKET``.

Started by ``isolated.py``. Its first message says whether the file could be loaded; then it answers one message after
the other. It imports no more than it needs, so that it is there at once.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from openrlhf.rollout.rewards import RewardFailed, RewardFunction, call_reward_function, load_reward_function

log = logging.getLogger(__name__)
OURS = str(Path(__file__).parents[1])


def main(file: str, number: int) -> None:
    end_with_parent()
    channel = socket.socket(fileno=number)
    os.set_inheritable(number, False)
    me = os.getpid()
    function: list[RewardFunction] = []

    def load() -> dict[str, Any]:
        function.append(load_reward_function(file))
        return {}

    told: set[str] = set()
    write(channel, attempt(load, told))
    while function and (message := read(channel)):
        answer = attempt(partial(rewards, function[0], message), told)
        if os.getpid() != me:
            os._exit(1)  # the function forked, and this is the copy
        write(channel, answer)
    os.killpg(0, signal.SIGKILL)  # with all that the function started


def rewards(function: RewardFunction, message: dict[str, Any]) -> dict[str, Any]:
    return asdict(call_reward_function(function, **message))


def attempt(act: Callable[[], dict[str, Any]], told: set[str]) -> dict[str, Any]:
    """What ``act`` returns, or what went wrong in it. ``told`` are the places that were shown already."""
    try:
        return act()
    except RewardFailed as error:
        return {"failed": said(error)}
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        place = "".join(traceback.format_exception(error.with_traceback(theirs(error.__traceback__))))
        if place not in told:  # what failed is asked again
            log.error("the reward function failed", exc_info=error)
        told.add(place)
        return {"failed": said(error)}


def theirs(frames: TracebackType | None) -> TracebackType | None:
    """``frames`` from the first of the user's on: ours and those of the import are not what is wrong."""
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith((OURS, "<frozen importlib")):
        frames = frames.tb_next
    return frames


def end_with_parent() -> None:
    """Standard input is a pipe that the parent holds: when it ends, this process and all it started do."""
    lifeline = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)

    def wait() -> None:
        os.read(lifeline, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def write(channel: socket.socket, message: dict[str, Any]) -> None:
    content = json.dumps(message).encode()
    channel.sendall(len(content).to_bytes(8, "big") + content)


def read(channel: socket.socket) -> dict[str, Any]:
    """The next message, or an empty one when there are no more."""
    length = int.from_bytes(read_bytes(channel, 8), "big")
    return json.loads(read_bytes(channel, length)) if length else {}


def read_bytes(channel: socket.socket, count: int) -> bytes:
    content = bytearray()
    while len(content) < count:
        part = channel.recv(min(count - len(content), 2**20))
        if not part:
            return b""
        content += part
    return bytes(content)


def said(error: BaseException) -> str:
    """What went wrong, in one line."""
    if isinstance(error, SystemExit):
        return f"it called exit({error.code})"
    words = " ".join(str(error).split())[:500]
    return (
        words.removeprefix("reward_func: ")
        if isinstance(error, RewardFailed)
        else f"it raised {type(error).__name__}: {words}"
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
