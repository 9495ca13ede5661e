"""Many conversations at once: who goes to the engine together, and what a crashing, slow or strange one costs."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from openrlhf.rollout import conversations
from openrlhf.rollout.engine import Completion, SamplingParams
from openrlhf.rollout.rewards import RewardFailed
from openrlhf.types import Prompt
from tests.rollout.scripted import agent, hold, said_of

PROMPTS = [Prompt(i, "abcdefgh"[i], [i], str(i)) for i in range(8)]
# Conversation i has 1 + i % 3 turns; the third kind of trouble is told by the label.
COUNT = """
import asyncio, threading, time

class AgentInstance:
    async def reset(self, states):
        self.turns = 0
        return {"observation": states["observation"]}

    async def step(self, states):
        self.turns += 1
        number = int(states["label"])
        TROUBLE
        return {"rewards": 1.0, "environment_feedback": "z", "done": self.turns > number % 3}
"""


def one_token(tokens: list[int], params: SamplingParams) -> Completion:
    return said_of([40], -1.0)


def code(trouble: str = "pass") -> str:
    return COUNT.replace("TROUBLE", trouble)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, turns that are due wait for the others."""
    monkeypatch.setattr(conversations, "GATHER_SECONDS", 30.0)


@pytest.mark.usefixtures("patient")
def test_turns_that_are_due_go_to_the_engine_together(tmp_path: Path) -> None:
    samples, engine = hold(agent(tmp_path, code()), one_token, PROMPTS, n=2)
    assert [len(batch) for batch in engine.batches] == [16, 10, 4]
    assert [tokens[0] for tokens in engine.batches[0]] == [i for i in range(8) for _ in range(2)]
    assert [s.group for s in samples] == [i for i in range(8) for _ in range(2)]
    assert [s.reward for s in samples] == [1.0 + i % 3 for i in range(8) for _ in range(2)]


@pytest.mark.usefixtures("patient")
def test_no_more_conversations_at_once_than_there_is_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversations, "AT_ONCE", 3)
    samples, engine = hold(agent(tmp_path, code()), one_token, PROMPTS)
    assert [s.prompt for s in samples] == list("abcdefgh")
    assert max(len(batch) for batch in engine.batches) == 3


def test_a_slow_environment_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on only when the others are through. Even where it blocks its thread."""
    monkeypatch.setattr(conversations, "GATHER_SECONDS", 0.05)
    wait = 'if number == 2: assert [t for t in threading.enumerate() if t.name == "the gate"][0].opened.wait(60)'

    class Gate(threading.Thread):
        def __init__(self) -> None:
            super().__init__(name="the gate", daemon=True)
            self.opened = threading.Event()
            self.closed = threading.Event()

        def run(self) -> None:
            self.closed.wait(60)

    gate, asked = Gate(), []
    gate.start()

    def open_after_all_others(tokens: list[int], params: SamplingParams) -> Completion:
        asked.append(tokens[0])
        if len(asked) == 8 + 7 - 3 + 1:  # first turns, then second and third ones of 1, 4, 5 and 7
            gate.opened.set()
        return one_token(tokens, params)

    samples, _ = hold(agent(tmp_path, code(wait)), open_after_all_others, PROMPTS)
    gate.closed.set()
    assert [s.reward for s in samples] == [1.0 + i % 3 for i in range(8)]
    assert asked[-2:] == [2, 2]


TROUBLES = {
    "if number == 4: raise KeyError('door')": "it raised KeyError: 'door'",
    "if number == 4: exit(3)": "it raised SystemExit: 3",
    "if number == 4: return {'rewards': float('nan'), 'done': True}": "rewards is nan; it must be a finite number",
    "if number == 4: return None": "step must return a dict with 'rewards', not NoneType",
    "if number == 4: return {'rewards': 1}": r"step must return a dict with 'done', not \['rewards'\]",
    "if number == 4: return {'rewards': 1, 'done': 0, 'sampling_params': {'temperature': 0}}": ".* change temperature",
}


@pytest.mark.parametrize(("trouble", "said"), TROUBLES.items())
def test_a_failing_agent_costs_its_own_sample(
    tmp_path: Path, trouble: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    samples, _ = hold(agent(tmp_path, code(trouble), drops=True), one_token, PROMPTS)
    assert [s.prompt for s in samples] == list("abcdfgh")
    assert [s.group for s in samples] == [0, 1, 2, 3, 5, 6, 7]
    assert "1 of 8 samples got no reward and are left out" in caplog.text
    with pytest.raises(RewardFailed, match=rf"agent.py, conversation 4 \(prompt 'e'\): {said}"):
        hold(agent(tmp_path, code(trouble)), one_token, PROMPTS)


@pytest.mark.slow
@pytest.mark.parametrize("blocks", ["await asyncio.sleep(600)", "time.sleep(600)"])
def test_an_agent_that_hangs_costs_its_own_sample(
    tmp_path: Path, blocks: str, caplog: pytest.LogCaptureFixture
) -> None:
    hangs = agent(tmp_path, code(f"if number == 4 and self.turns == 2: {blocks}"), timeout_s=3.0, drops=True)
    samples, _ = hold(hangs, one_token, PROMPTS)
    assert [s.prompt for s in samples] == list("abcdfgh")
    assert "neither ended nor asked the policy within --reward_timeout 3 s" in caplog.text


def test_when_all_fail_the_run_ends(tmp_path: Path) -> None:
    with pytest.raises(RewardFailed, match="none of 8 samples got a reward: .*conversation [0-7] .*ValueError: no"):
        hold(agent(tmp_path, code("raise ValueError('no')"), drops=True), one_token, PROMPTS)


@pytest.mark.usefixtures("patient")
def test_an_error_of_the_engine_comes_through_and_ends_the_conversations(tmp_path: Path) -> None:
    def broken(tokens: list[int], params: SamplingParams) -> Completion:
        began.extend(t for t in threading.enumerate() if t.name.startswith("conversation ") and t not in before)
        raise TimeoutError("engine 0 is gone")

    before, began = threading.enumerate(), list[threading.Thread]()

    with pytest.raises(TimeoutError, match="engine 0 is gone"):
        hold(agent(tmp_path, code()), broken, PROMPTS)
    assert len(began) == 8
    for thread in began:
        thread.join(60)
        assert not thread.is_alive()


SEVERAL = """
import asyncio

class AgentExecutor:
    async def execute(self, prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine):
        start = llm_engine.prompt_tokens
        first, second = await asyncio.gather(llm_engine.generate(start), llm_engine.generate(start))
        given_up = asyncio.ensure_future(llm_engine.generate(start))
        await asyncio.sleep(0)
        given_up.cancel()
        best = max(first, second, key=lambda completion: completion.token_ids)
        tokens = start + best.token_ids
        return {"observation_tokens": tokens, "action_ranges": [(len(start), len(tokens))], "reward": len(tokens)}
"""


def test_an_executor_may_ask_several_times_at_once_and_give_up(tmp_path: Path) -> None:
    def draw(tokens: list[int], params: SamplingParams) -> Completion:
        return said_of([params.seed % 1000 + 30], float(params.seed))

    samples, engine = hold(agent(tmp_path, SEVERAL), draw, PROMPTS)
    asked = [(tokens[0], own.seed) for batch, each in zip(engine.batches, engine.params, strict=True)
             for tokens, own in zip(batch, each, strict=True)]  # fmt: skip
    assert len(set(asked)) == len(asked) >= 16
    for sample in samples:
        seeds = [seed for place, seed in asked if place == sample.tokens[0]][:2]
        assert sample.tokens[1] == 30 + max(seed % 1000 for seed in seeds)
        assert sample.reward == 2
