"""The ways in which a run on Ray samples: what generates, what it holds meanwhile, and how new weights get in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

from openrlhf.cluster.actor_engine import ActorEngine
from openrlhf.cluster.engines import Engines
from openrlhf.cluster.group import Group
from openrlhf.rollout.engine import RolloutEngine
from openrlhf.rollout.partial import PartialEngine
from openrlhf.rollout.stop_strings import Decode


@dataclass(frozen=True)
class Sampling:
    engines: RolloutEngine
    held: Callable[[], AbstractContextManager[None]]  # while a rollout is sampled
    sync: Callable[[int], None]
    sync_waits: bool  # for the rollouts that were asked for before


def whole_rollouts(engines: Engines, lock: threading.RLock, sleeps: bool) -> Sampling:
    """Holds the devices of the engines while they generate or take weights."""

    @contextmanager
    def held() -> Iterator[None]:
        with lock:
            if sleeps:
                engines.wake()
            yield
            if sleeps:
                engines.sleep()

    def sync(version: int) -> None:
        with held(), engines.weights.actor.awake():
            engines.sync(version)

    return Sampling(engines, held, sync, sync_waits=True)


def partial_rollouts(engines: Engines, decode: Decode) -> Sampling:
    """A sync breaks off the generation under way, which then goes on. The engines have devices of their own."""
    whole = PartialEngine(engines, engines.deadline_s, decode)

    def sync(version: int) -> None:
        # In this order, as a generation that replaces a dead engine asks for the actor too.
        with whole.interrupted(), engines.weights.actor.awake():
            engines.sync(version)

    return Sampling(whole, nullcontext, sync, sync_waits=False)


def rollouts_of_the_actor(actor: Group) -> Sampling:
    engine = ActorEngine(actor)
    return Sampling(engine, actor.awake, partial(engine.load_weights, []), sync_waits=True)
