"""Calls into Ray actors that always come back: with the answers, with the first failure, or at the deadline."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ObjectStoreFullError, OutOfDiskError, RayActorError, RayError, RayTaskError

from openrlhf.training.roles import PartLost

ASIDE = "aside"  # the concurrency group in which an actor answers while it works
GROUPS = {ASIDE: 1}  # what ray.remote is told of it
HEARTBEAT_S = 60.0  # after so long, and again and again, a line says whom the run waits for
OTHERS_S = 5.0  # after a failure, to hear whether it only follows from the death of another


class RoleError(RuntimeError):
    """A worker or engine failed; the message says which, the cause is its own exception."""


class RoleDied(RoleError, PartLost):
    """Its process is gone."""


class NoRoom(RoleError, PartLost):
    """Neither Ray's memory nor the disk behind it takes what processes tell each other."""


@dataclass(frozen=True)
class Timed:
    """An answer, and the seconds between the arguments' arrival and it: without Ray and without waiting in line."""

    value: Any
    seconds: float


def ask(actor: Any, verb: str, *args: Any) -> ray.ObjectRef:
    """Call a method of a Ray actor; the answer is ``Timed``. Raises NoRoom."""
    try:
        return actor.__ray_call__.remote(_timed, verb, *args)
    except (ObjectStoreFullError, OutOfDiskError) as error:
        raise NoRoom(_no_room(f"what {verb} is asked with", error)) from error


def ask_aside(actor: Any, verb: str) -> ray.ObjectRef:
    """As ``ask``, and answered while the actor works on another call."""
    return actor.__ray_call__.options(concurrency_group=ASIDE).remote(_timed, verb)


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

    Raises RoleError soon after one call fails, however long the others would still take (a rank that waits in a
    collective for a dead one never answers), and TimeoutError that names who has not answered.
    """
    outcomes = settle(refs, names, verb, deadline_s, _end)
    if failures := [outcome for outcome in outcomes if isinstance(outcome, RoleError)]:
        raise next((failure for failure in failures if isinstance(failure, RoleDied)), failures[0])
    late = [name for name, outcome in zip(names, outcomes, strict=True) if isinstance(outcome, TimeoutError)]
    if late:
        raise TimeoutError(_late(late, verb, deadline_s))
    return outcomes


def settle(
    refs: Sequence[ray.ObjectRef],
    names: Sequence[str],
    verb: str,
    deadline_s: float,
    failed: Callable[[int, RoleError], float | None],
) -> list[Any]:
    """For each call its answer, or what became of it: RoleError, or TimeoutError at the deadline.

    ``failed`` hears the place of a call that failed, and why, at once. It answers how many seconds the others may take
    from then on, None for as many as before.
    """
    began = time.monotonic()
    until = began + deadline_s
    place = {ref: i for i, ref in enumerate(refs)}
    outcomes: list[Any] = [None] * len(refs)
    waiting = list(refs)
    while waiting:
        now = time.monotonic()
        ready, waiting = ray.wait(waiting, num_returns=1, timeout=max(0.0, min(HEARTBEAT_S, until - now)))
        late = [names[place[ref]] for ref in waiting]
        if ready:
            i = place[ready[0]]
            outcomes[i] = _outcome(ready[0], names[i], verb)
            if isinstance(outcomes[i], RoleError) and (rest := failed(i, outcomes[i])) is not None:
                until = min(until, time.monotonic() + rest)
        elif until - now <= HEARTBEAT_S:
            for ref in waiting:
                outcomes[place[ref]] = TimeoutError(_late([names[place[ref]]], verb, until - began))
            break
        else:
            waited = time.monotonic() - began
            print(
                f"waiting for {', '.join(late)}: {verb}, for {waited:.0f} s of at most {deadline_s:.0f} s",
                file=sys.stderr,
            )
    return outcomes


def _end(place: int, error: RoleError) -> float:
    """A rank that loses its neighbour in a collective fails a moment before Ray knows that the neighbour is dead."""
    return 0.0 if isinstance(error, RoleDied) else OTHERS_S


def _late(names: Sequence[str], verb: str, seconds: float) -> str:
    return f"{', '.join(names)} did not answer {verb} within {seconds:.0f} s"


def _outcome(ref: ray.ObjectRef, name: str, verb: str) -> Any:
    try:
        return ray.get(ref, timeout=60)
    except RayTaskError as error:
        cause, failed = error.cause, f"{name} failed in {verb}"
        failure = RoleError(f"{failed}: {type(cause).__name__}: {cause}")
        if isinstance(cause, ObjectStoreFullError | OutOfDiskError):
            failure = NoRoom(f"{failed}: {_no_room('its answer', cause)}")
        failure.__cause__ = error
    except RayActorError as error:
        failure = RoleDied(f"{name} died in {verb}: {why_dead(error)}")
        failure.__cause__ = error
    return failure


def _no_room(what: str, error: RayError) -> str:
    return (
        f"there is no room for {what}, neither in Ray's memory nor on the disk behind it: make room there, or name "
        f"another folder with RAY_TMPDIR ({str(error).strip().splitlines()[0]})"
    )


def why_dead(error: RayError) -> str:
    """The end of what Ray says, without its advice."""
    return str(error).strip().splitlines()[-1].partition(" Some common causes")[0]
