"""Calls into Ray actors that always come back: with the answers, with the first failure, or at the deadline."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

HEARTBEAT_S = 60.0  # after so long, and again and again, a line says whom the run waits for


class RoleError(RuntimeError):
    """A worker or engine failed; the message says which, the cause is its own exception."""


@dataclass(frozen=True)
class Timed:
    """An answer, and the seconds between the arguments' arrival and it: without Ray and without waiting in line."""

    value: Any
    seconds: float


def ask(actor: Any, verb: str, *args: Any) -> ray.ObjectRef:
    """Call a method of a Ray actor; the answer is ``Timed``."""
    return actor.__ray_call__.remote(_timed, verb, *args)


def _timed(actor: Any, verb: str, *args: Any) -> Timed:
    began = time.monotonic()
    value = getattr(actor, verb)(*args)  # Ray's methods exist by name only
    return Timed(value, time.monotonic() - began)


def await_timed(
    refs: Sequence[ray.ObjectRef], names: Sequence[str], verb: str, deadline_s: float
) -> tuple[list[Any], float]:
    """The answers to ``ask``, and how long the slowest worked. Raises as ``await_all``."""
    answers = await_all(refs, names, verb, deadline_s)
    return [answer.value for answer in answers], max(answer.seconds for answer in answers)


def await_all(refs: Sequence[ray.ObjectRef], names: Sequence[str], verb: str, deadline_s: float) -> list[Any]:
    """The results, in order.

    Raises RoleError as soon as one call fails, however long the others would still take (a rank that waits in a
    collective for a dead one never answers), and TimeoutError that names who has not answered.
    """
    began = time.monotonic()
    name_of = dict(zip(refs, names, strict=True))
    waiting = list(refs)
    results: dict[ray.ObjectRef, Any] = {}
    while waiting:
        left = began + deadline_s - time.monotonic()
        ready, waiting = ray.wait(waiting, num_returns=1, timeout=max(0.0, min(HEARTBEAT_S, left)))
        if not ready:
            late = ", ".join(name_of[ref] for ref in waiting)
            if left <= HEARTBEAT_S:
                raise TimeoutError(f"{late} did not answer {verb} within {deadline_s:.0f} s")
            waited = time.monotonic() - began
            print(f"waiting for {late}: {verb}, for {waited:.0f} s of at most {deadline_s:.0f} s", file=sys.stderr)
            continue
        results[ready[0]] = _result(ready[0], name_of[ready[0]], verb)
    return [results[ref] for ref in refs]


def _result(ref: ray.ObjectRef, name: str, verb: str) -> Any:
    try:
        return ray.get(ref, timeout=60)
    except RayTaskError as error:
        cause = error.cause
        raise RoleError(f"{name} failed in {verb}: {type(cause).__name__}: {cause}") from error
    except RayActorError as error:
        raise RoleError(f"{name} died in {verb}: {error}") from error
