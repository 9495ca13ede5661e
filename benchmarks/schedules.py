"""How the rollouts of a step and its update lie beside each other, on a clock that is only counted: the loop's own
``ask_ahead`` and ``gather``, with engines and a trainer that take as long as a model of them says.

All in one place: every GPU generates, then every GPU trains. Apart: some are engines, the others train, and each takes
longer for it. Longer answers than others keep an engine busy when most of its places are empty, and the other engines
waiting.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import describe
from benchmarks.table import markdown
from openrlhf.data.sampler import Cursor
from openrlhf.training.ahead import ask_ahead
from openrlhf.training.roles import gather
from openrlhf.types import Prompt

GPUS, EACH, STEPS = (8, 64, 512), 16, 40  # each: samples of a GPU in a step
SHARES = tuple(number / 8 for number in range(2, 7))  # of engines
MEDIAN, SIGMA, LONGEST = 4096, 1.0, 32768  # tokens of an answer
TOKEN_S, PLACE_S = 0.010, 0.0003  # a decoding step: reading the weights, and the cache of each sample under way
SYNC_S = 1.0
IDLE_GOAL, STALENESS_GOAL = 0.15, 0.3
SCHEDULES: dict[str, tuple[bool, int, bool]] = {  # apart, rollouts ahead, a sync breaks into a generation
    "one after the other, all GPUs for both": (False, 0, False),
    "apart, `--async_train`, a queue of 1": (True, 1, False),
    "apart, `--async_train --partial_rollout`, a queue of 1": (True, 1, True),
    "apart, `--async_train --partial_rollout`, a queue of 2": (True, 2, True),
}


class Clock:
    now = 0.0


class At(Future[Any]):
    """Done at a time: whoever takes the result has waited until then."""

    def __init__(self, clock: Clock, time: float, value: Any = None) -> None:
        super().__init__()
        self.clock, self.time = clock, time
        self.set_result(value)

    def result(self, timeout: float | None = None) -> Any:
        self.clock.now = max(self.clock.now, self.time)
        return super().result(timeout)


@dataclass
class Generation:
    """A rollout under way: when each engine has made how many tokens of each of its answers."""

    start: float
    lengths: Tensor  # (engines, samples), then sorted
    pauses: list[float] = field(default_factory=list)  # when syncs broke in

    def __post_init__(self) -> None:
        self.lengths = self.lengths.sort(dim=1).values
        under_way = torch.arange(self.lengths.shape[1], 0, -1)
        more = torch.diff(self.lengths, prepend=torch.zeros(len(self.lengths), 1))
        # Of each engine, when its shortest answer ends, the second …, in seconds after the start.
        self.clocks = (more * (TOKEN_S + PLACE_S * under_way)).cumsum(dim=1)

    @property
    def own(self) -> Tensor:
        """(engines,) seconds that each engine works."""
        return self.clocks[:, -1]

    @property
    def end(self) -> float:
        return self.start + float(self.own.max()) + SYNC_S * len(self.pauses)

    def drawn_before(self, time: float) -> float:
        """Which share of the tokens, pauses left out."""
        worked = time - self.start - SYNC_S * sum(pause < time for pause in self.pauses)
        ended = torch.nn.functional.pad(self.clocks, (1, 0))
        lengths = torch.nn.functional.pad(self.lengths, (1, 0))
        place = (self.clocks <= worked).sum(dim=1, keepdim=True).clamp(max=self.clocks.shape[1] - 1)
        (t0, t1), (n0, n1) = ((x.gather(1, place), x.gather(1, place + 1)) for x in (ended, lengths))
        reached = n0 + ((worked - t0) / (t1 - t0)).clamp(0, 1) * (n1 - n0)
        return float(self.lengths.minimum(reached).sum() / self.lengths.sum())


class FakeEngines:
    """Rollouts come in the order in which they were asked for. A sync waits for those, or breaks into one."""

    def __init__(self, clock: Clock, engines: int, samples: int, breaks_in: bool) -> None:
        self.clock, self.shape, self.breaks_in = clock, (engines, samples // engines), breaks_in
        self.free = 0.0  # when the line is
        self.under_way: list[Generation] = []
        self.synced: list[float] = []  # when the engines had version 1, 2, …
        self.worked = 0.0  # seconds, mean of the engines

    def collect(self, prompts: list[Prompt], seed: int) -> At:
        drawn = torch.randn(self.shape, generator=torch.Generator().manual_seed(seed))
        made = Generation(max(self.clock.now, self.free), (MEDIAN * (SIGMA * drawn).exp()).clamp(16, LONGEST))
        self.worked += float(made.own.mean())
        self.free = made.end
        self.under_way.append(made)
        return Ready(self.clock, made)

    def sync(self, version: int) -> At:
        now = self.clock.now
        if self.breaks_in:
            for made in self.under_way:
                if made.start >= now:
                    made.start += SYNC_S
                elif made.end > now:
                    made.pauses.append(now)
            self.free = max([now + SYNC_S, *(made.end for made in self.under_way)])
            done = now + SYNC_S
        else:
            done = self.free = max(now, self.free) + SYNC_S
        self.synced.append(done)
        return At(self.clock, done)

    def age(self, made: Generation, step: int) -> float:
        """Mean over tokens: how many updates the policy that ``step`` finds has had since the token was drawn."""
        return step - 1 - sum(1 - made.drawn_before(time) for time in self.synced)


class Ready(At):
    """A rollout whose end may be put off by syncs."""

    def __init__(self, clock: Clock, made: Generation) -> None:
        super().__init__(clock, made.end, made)
        self.made = made

    def result(self, timeout: float | None = None) -> Any:
        self.time = self.made.end
        return super().result(timeout)


@dataclass(frozen=True)
class Outcome:
    engines_share: float
    step: float  # seconds
    idle: float
    staleness: float


def simulated(gpus: int, engines_share: float, ahead: int, breaks_in: bool) -> Outcome:
    """Means over the second half of the steps. With a share of 1 every GPU generates, and then every GPU trains."""
    apart = engines_share < 1
    clock = Clock()
    engines = FakeEngines(clock, round(gpus * engines_share), gpus * EACH, breaks_in)
    training = training_seconds(gpus) / (1 - engines_share if apart else 1)
    asked = ask_ahead(engines, (([], Cursor()) for _ in range(STEPS)), 0, 1, ahead)  # type: ignore[arg-type]
    ages, began, worked = [], 0.0, 0.0
    for rollout in asked:
        if rollout.step == STEPS // 2 + 1:
            began, worked = clock.now, engines.worked
        (made,) = gather(rollout.samples, deadline_s=1.0)
        ages.append(engines.age(made, rollout.step))
        clock.now += training
        gather(engines.sync(rollout.step), deadline_s=1.0)
    steps = STEPS - STEPS // 2
    whole, trained = clock.now - began, steps * training
    # In the last steps nothing is asked for that the steps do not use.
    generated = (engines.worked - worked) * steps / (steps - ahead)
    staleness = mean(ages[-steps:])
    if not apart:
        return Outcome(engines_share, whole / steps, 1 - (generated + trained) / whole, staleness)
    busy = engines_share * generated + (1 - engines_share) * trained
    return Outcome(engines_share, whole / steps, 1 - busy / whole, staleness)


def best(gpus: int, apart: bool, ahead: int, breaks_in: bool) -> Outcome:
    """With the share of engines that makes a step shortest."""
    shares = SHARES if apart else (1.0,)
    return min((simulated(gpus, share, ahead, breaks_in) for share in shares), key=lambda outcome: outcome.step)


def training_seconds(gpus: int) -> float:
    """What training takes, all GPUs together: as long as generating would, if no GPU waited for another."""
    drawn = torch.randn((gpus, EACH), generator=torch.Generator().manual_seed(0))
    return float(Generation(0.0, (MEDIAN * (SIGMA * drawn).exp()).clamp(16, LONGEST)).own.mean())


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def schedule_table() -> str:
    intro = f"""\
## Schedules, simulated

{describe(("torch",))}.
The loop's own order of asking and waiting on a clock that is counted. {EACH} samples a GPU and step, lognormal \
answers (median {MEDIAN:,} tokens, σ {SIGMA:g}, at most {LONGEST:,}); a decoding step takes {1000 * TOKEN_S:g} ms and \
{1000 * PLACE_S:g} ms for each sample under way; on all GPUs an update takes as long as the generation would if no GPU \
waited for another; a sync takes {SYNC_S:g} s. Apart, as many GPUs are engines (in eighths) as make a step \
shortest. Idle: the share of time in which a GPU has nothing to do. Staleness: updates since a token was drawn, mean."""
    outcomes = {(gpus, name): best(gpus, *how) for gpus in GPUS for name, how in SCHEDULES.items()}
    return intro + "\n\n" + summarise(outcomes)


def summarise(outcomes: dict[tuple[int, str], Outcome]) -> str:
    """The goal is for idle GPUs at little staleness: both must hold."""
    rows = []
    for (gpus, name), outcome in outcomes.items():
        met = outcome.idle <= IDLE_GOAL and outcome.staleness <= STALENESS_GOAL
        rows.append(
            [f"{gpus} GPUs, {name}", f"{outcome.engines_share:.0%}", f"{outcome.step:.0f}", f"{outcome.idle:.0%}",
             f"{outcome.staleness:.2f}", f"≤ {IDLE_GOAL:.0%} at ≤ {STALENESS_GOAL:g}", "yes" if met else "no"]
        )  # fmt: skip
    return markdown(("schedule", "engines", "a step, s", "idle", "staleness", "goal", "met"), rows)
