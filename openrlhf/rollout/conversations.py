"""Many conversations at once: whatever turns are due go to the engine together.

Each conversation runs in a thread with an event loop of its own, so that an agent may block as it likes: it holds up
nobody else, and one that is too slow is left behind. The engine is called from here alone.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from openrlhf.rollout.agents import FLAG, Agent, Exchange, make_sample, own_params, settled
from openrlhf.rollout.engine import Completion, RolloutEngine, SamplingParams, request_seed
from openrlhf.rollout.rewards import RewardFailed, tell_failures
from openrlhf.rollout.waiting import waiting
from openrlhf.types import Prompt, Sample

log = logging.getLogger(__name__)

AT_ONCE = 1024  # conversations, each with a thread
GATHER_SECONDS = 0.2  # how long turns that are due wait for those of other conversations


@dataclass(frozen=True)
class Turn:
    """An answer that a conversation waits for."""

    place: int
    tokens: list[int]
    params: SamplingParams
    answer: Future[Completion] = field(default_factory=Future)


@dataclass(frozen=True)
class Ended:
    place: int
    outcome: Sample | BaseException


Events = queue.SimpleQueue[Turn | Ended]


class ConversationEngine:
    """``llm_engine`` of one conversation."""

    def __init__(self, place: int, prompt: Prompt, params: SamplingParams, max_length: int, events: Events) -> None:
        self.prompt_tokens = list(prompt.tokens)
        self.said: list[Exchange] = []
        self._place = place
        self._params = params
        self._max_length = max_length
        self._events = events
        self._asked = 0

    async def generate(
        self, token_ids: Sequence[int], sampling_params: SamplingParams | Mapping[str, Any] | None = None
    ) -> Completion:
        """The policy's answer to ``token_ids``. Without ``sampling_params`` as the flags say; a dict changes some.

        The answer ends where the conversation would become too long. Raises RewardFailed when there is no room at all,
        or when the parameters change the distribution that is trained.
        """
        tokens = [int(token) for token in token_ids]
        params = own_params(sampling_params, self._params, self._max_length - len(tokens))
        if self._params.seed is not None:
            params = replace(params, seed=request_seed(self._params.seed, self._asked))
        self._asked += 1
        turn = Turn(self._place, tokens, params)
        self._events.put(turn)
        completion = await asyncio.wrap_future(turn.answer)
        self.said.append(Exchange(tokens, completion))
        return completion


def hold_conversations(
    agent: Agent, asked: Sequence[tuple[int, Prompt]], engine: RolloutEngine, params: SamplingParams, tokenizer: Any
) -> list[Sample]:
    """A sample of each group and prompt, in order, without those whose agent failed, where that is allowed.

    Turn t of the i-th has a seed of its own, by ``params.seed``. Raises RewardFailed for a failure otherwise.
    """
    return Conversations(agent, asked, engine, params, tokenizer).hold()


class Conversations:
    def __init__(
        self,
        agent: Agent,
        asked: Sequence[tuple[int, Prompt]],
        engine: RolloutEngine,
        params: SamplingParams,
        tokenizer: Any,
    ) -> None:
        self.agent = agent
        self.asked = asked
        self.engine = engine
        self.params = params
        self.tokenizer = tokenizer
        self.events: Events = queue.SimpleQueue()
        self.to_come = deque(range(len(asked)))
        self.working: dict[int, float] = {}  # whose own code runs, and since when
        self.due: dict[int, list[Turn]] = {}  # who waits for the policy
        self.samples: dict[int, Sample] = {}
        self.failures: dict[int, str] = {}

    def hold(self) -> list[Sample]:
        try:
            while self.to_come or self.working or self.due:
                self._begin()
                with waiting(f"{FLAG} {self.agent.file}: {len(self.working)} conversations"):
                    self._listen()
                self._leave_behind()
                self._answer()
        finally:
            self._refuse(self.due.keys())
        tell_failures(self.failures, len(self.asked))
        return [self.samples[place] for place in sorted(self.samples)]

    def _begin(self) -> None:
        """Conversations that there is room for."""
        while self.to_come and len(self.working.keys() | self.due.keys()) < AT_ONCE:
            place = self.to_come.popleft()
            self.working[place] = time.monotonic()
            threading.Thread(target=self._run, args=(place,), daemon=True, name=f"conversation {place}").start()

    def _run(self, place: int) -> None:
        """One conversation, in its thread."""
        try:
            outcome: Sample | BaseException = asyncio.run(self._converse(place))
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001  the file may raise anything
            outcome = error
        self.events.put(Ended(place, outcome))

    async def _converse(self, place: int) -> Sample:
        group, prompt = self.asked[place]
        params = self.params
        if params.seed is not None:
            params = replace(params, seed=request_seed(params.seed, place))
        limit = self.agent.max_length
        engine = ConversationEngine(place, prompt, params, limit, self.events)
        executor = self.agent.new_executor()
        answer = await settled(
            executor.execute(
                prompt=prompt.text,
                label=prompt.label,
                sampling_params=params,
                max_length=limit,
                hf_tokenizer=self.tokenizer,
                llm_engine=engine,
            )
        )
        return make_sample(answer, engine.said, prompt, group, limit)

    def _listen(self) -> None:
        """Until every conversation waits for the policy, or some do and the others have had their chance."""
        patience = 0.0
        while self.working:
            until = patience if self.due else min(self.working.values()) + self.agent.timeout_s
            try:
                event = self.events.get(timeout=max(until - time.monotonic(), 0))
            except queue.Empty:
                return
            if event.place in self.failures:  # left behind
                if isinstance(event, Turn):
                    refuse(event)
            elif isinstance(event, Turn):
                if not self.due:
                    patience = time.monotonic() + GATHER_SECONDS
                self.due.setdefault(event.place, []).append(event)
                self.working.pop(event.place, None)
            else:
                self._end(event)
                self._begin()

    def _end(self, event: Ended) -> None:
        self.working.pop(event.place, None)
        self._refuse([event.place])
        if isinstance(event.outcome, Sample):
            self.samples[event.place] = event.outcome
        else:
            self._fail(event.place, event.outcome)

    def _leave_behind(self) -> None:
        """Conversations whose own code takes too long. Its thread cannot be ended; what it says is not heard."""
        limit = self.agent.timeout_s
        late = [place for place, since in self.working.items() if time.monotonic() - since > limit]
        for place in late:
            del self.working[place]
            self._fail(
                place, RewardFailed(f"it neither ended nor asked the policy within --reward_timeout {limit:g} s")
            )

    def _answer(self) -> None:
        """Every turn that is due, in the order of the conversations."""
        due = [turn for place in sorted(self.due) for turn in self.due[place]]
        turns = [turn for turn in due if turn.answer.set_running_or_notify_cancel()]
        if turns:
            answers = self.engine.generate([turn.tokens for turn in turns], [turn.params for turn in turns])
            for turn, completion in zip(turns, answers, strict=True):
                turn.answer.set_result(completion)
        self.working |= dict.fromkeys(self.due, time.monotonic())
        self.due = {}

    def _fail(self, place: int, error: BaseException) -> None:
        raised = "" if isinstance(error, RewardFailed) else f"it raised {type(error).__name__}: "
        prompt = self.asked[place][1].text
        why = f"{FLAG} {self.agent.file}, conversation {place} (prompt {prompt[-60:]!r}): {raised}{error}"
        if raised and not self.failures:
            log.error("the agent failed", exc_info=error)
        if not self.agent.drops_failures:
            raise RewardFailed(why) from error
        self.failures[place] = why

    def _refuse(self, places: Iterable[int]) -> None:
        """Turns that nobody will answer."""
        for turn in [turn for place in list(places) for turn in self.due.pop(place, [])]:
            refuse(turn)


def refuse(turn: Turn) -> None:
    if not turn.answer.done():
        turn.answer.set_exception(RewardFailed("the conversation is over"))
