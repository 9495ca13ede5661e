"""The contract of an agent file: tokens and masks of a conversation, what may be answered, and what is refused."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from openrlhf.config.commands import PPOConfig
from openrlhf.config.parse import read
from openrlhf.rollout.agents import agent_of, load_executor, own_params
from openrlhf.rollout.engine import Completion, SamplingParams
from openrlhf.rollout.rewards import RewardFailed
from openrlhf.types import Prompt, collate
from tests.rollout.scripted import agent, hold, said_of

PROMPT = [Prompt(0, "abc", [0, 1, 2], "the label", "games")]
THREE_TURNS = """
class AgentInstance:
    async def reset(self, states):
        self.seen = [states]
        return {"observation": states["observation"]}

    async def step(self, states):
        self.seen.append(states)
        turn = len(self.seen) - 1
        assert states["label"] == self.seen[0]["label"] == "the label"
        assert states["observation_text"] == ["abc", "abckkzde", "abckkzdenf"][turn - 1]
        assert states["action_text"] == ["kkz", "n", "qz"][turn - 1]
        return {
            "rewards": [0.25, -1.0, 2.0][turn - 1], "scores": [0.0, 0.0, 0.5][turn - 1], "done": turn == 3,
            "environment_feedback": ["de", "f", "never read"][turn - 1], "extra_logs": {"turn": turn},
        }
"""
SCRIPT = {
    (0, 1, 2): [10, 36, 25],
    (0, 1, 2, 10, 36, 25, 3, 4): [39],
    (0, 1, 2, 10, 36, 25, 3, 4, 39, 5): [42, 51],
}


def answer(tokens: list[int], params: SamplingParams) -> Completion:
    out = SCRIPT[tuple(tokens)]
    return Completion(out, [-0.5 * token for token in out], out == [39], weight_versions=[len(out)] * len(out))


@pytest.mark.parametrize("plain", [False, True])
def test_three_turns_token_for_token(tmp_path: Path, plain: bool) -> None:
    """Ids above 25 are lost in the texts, and stay in the sample."""
    code = THREE_TURNS.replace("async ", "") if plain else THREE_TURNS
    (sample,), _ = hold(agent(tmp_path, code), answer, PROMPT)
    assert sample.tokens.tolist() == [0, 1, 2, 10, 36, 25, 3, 4, 39, 5, 42, 51]
    assert sample.action_mask.int().tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 1, 0, 1, 1]
    assert sample.rollout_log_probs.tolist() == [0, 0, 0, -5, -18, -12.5, 0, 0, -19.5, 0, -21, -25.5]
    assert (sample.reward, sample.score) == (1.25, 0.5)
    assert sample.turn_rewards.tolist() == [0, 0, 0, 0, 0, 0.25, 0, 0, -1, 0, 0, 2]
    assert (sample.group, sample.prompt, sample.label, sample.source) == (0, "abc", "the label", "games")
    assert sample.metrics == {"turns": 3.0, "turn": 3.0}
    assert sample.truncated is False  # the second turn was cut, and the conversation went on
    assert sample.weight_versions.tolist() == [0, 0, 0, 3, 3, 3, 0, 0, 1, 0, 2, 2]


ECHO = """
class AgentInstance:
    def reset(self, states):
        return {"observation": states["observation"]}

    def step(self, states):
        done = len(states["observation_text"]) > 60
        return {"rewards": 1, "environment_feedback": states["action_text"], "done": done}
"""


def test_random_tokens_stay_as_they_were_sampled(tmp_path: Path) -> None:
    """200 conversations of random ids, of which a text keeps a tenth: each sample holds exactly what was sampled."""
    said: dict[tuple[int, ...], list[int]] = {}

    def sample(tokens: list[int], params: SamplingParams) -> Completion:
        rng = random.Random(str(tokens) + str(params.seed))
        said[tuple(tokens)] = [rng.randrange(260) for _ in range(rng.randrange(1, 9))]
        return said_of(said[tuple(tokens)], -1.0)

    prompts = [Prompt(i, "xy", [i, 300 + i]) for i in range(200)]
    samples, _ = hold(agent(tmp_path, ECHO), sample, prompts)
    for prompt, got in zip(prompts, samples, strict=True):
        tokens, mask = list(prompt.tokens), [False, False]
        while (answer := said.get(tuple(tokens))) is not None:
            if len(tokens) > len(got.tokens):
                break
            echo = [] if len(tokens) + len(answer) == len(got.tokens) else [token % 26 for token in answer]
            tokens += answer + echo
            mask += [True] * len(answer) + [False] * len(echo)
        assert got.tokens.tolist() == tokens
        assert got.action_mask.tolist() == mask
    assert len({tuple(s.tokens.tolist()[:6]) for s in samples}) == 200


def test_another_observation_is_encoded_in_place_of_the_prompt(tmp_path: Path) -> None:
    code = ECHO.replace('states["observation"]}', '"hij"}').replace("> 60", "> 0")
    (sample,), _ = hold(agent(tmp_path, code), lambda *_: said_of([9]), PROMPT)
    assert sample.tokens.tolist() == [7, 8, 9, 9]
    assert sample.action_mask.tolist() == [False, False, False, True]


def test_the_limit_of_length_cuts_answers_and_ends_the_conversation(tmp_path: Path) -> None:
    """Of 12 tokens 3 are the prompt's; every answer takes what it is given, of the usual 4."""

    def long(tokens: list[int], params: SamplingParams) -> Completion:
        return said_of([30] * params.max_new_tokens, truncated=True)

    code = ECHO.replace('states["action_text"]', '"b"')
    params = SamplingParams(max_new_tokens=4, seed=1)
    (sample,), engine = hold(agent(tmp_path, code, max_length=12), long, PROMPT, params=params)
    assert [batch[0].max_new_tokens for batch in engine.params] == [4, 4]
    assert sample.tokens.tolist() == [0, 1, 2, 30, 30, 30, 30, 1, 30, 30, 30, 30]
    assert sample.truncated and sample.reward == 2.0
    (sample,), engine = hold(agent(tmp_path, code, max_length=11), long, PROMPT, params=params)
    assert [batch[0].max_new_tokens for batch in engine.params] == [4, 3]
    assert (len(sample.tokens), sample.truncated) == (11, True)


def test_feedback_without_room_for_an_answer_is_left_out(tmp_path: Path) -> None:
    (sample,), _ = hold(agent(tmp_path, ECHO, max_length=6), lambda *_: said_of([4, 25]), PROMPT)
    assert sample.tokens.tolist() == [0, 1, 2, 4, 25]
    assert sample.truncated


def test_the_environment_may_set_the_length_of_the_next_answer(tmp_path: Path) -> None:
    code = ECHO.replace('"rewards": 1', '"sampling_params": {"max_new_tokens": 2}, "rewards": 1').replace("60", "9")
    _, engine = hold(agent(tmp_path, code), lambda *_: said_of([4, 5]), PROMPT)
    assert [batch[0].max_new_tokens for batch in engine.params] == [8, 2, 2]


def test_a_narrower_top_p_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    usual = SamplingParams(top_p=0.97)
    for _ in range(3):
        assert own_params({"top_p": 0.875}, usual, 10).top_p == 0.875
        own_params({"top_p": 0.97, "max_new_tokens": 4}, usual, 10)
    assert [record.message[:53] for record in caplog.records] == [
        "--agent_func_path: the agent samples with top_p 0.875"
    ]


def test_turns_and_samples_have_seeds_of_their_own(tmp_path: Path) -> None:
    def draw(tokens: list[int], params: SamplingParams) -> Completion:
        rng = random.Random(f"{tokens} {params.seed}")
        return said_of([rng.randrange(50) for _ in range(6)])

    first, engine = hold(agent(tmp_path, ECHO), draw, PROMPT, n=8)
    seeds = [own.seed for batch in engine.params for own in batch]
    assert len(set(seeds)) == len(seeds) > 16
    again, _ = hold(agent(tmp_path, ECHO), draw, PROMPT, n=8)
    other, _ = hold(agent(tmp_path, ECHO), draw, PROMPT, n=8, params=SamplingParams(max_new_tokens=8, seed=8))
    assert [s.tokens.tolist() for s in first] == [s.tokens.tolist() for s in again]
    assert [s.tokens.tolist() for s in first] != [s.tokens.tolist() for s in other]


EXECUTOR = """
AGENT_CONTRACT = 1

class AgentExecutor:
    async def execute(self, prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine):
        tokens = list(llm_engine.prompt_tokens)
        start = len(tokens)
        first = await llm_engine.generate(tokens, sampling_params)
        tokens = tokens + first.token_ids
        answer = {"observation_tokens": tokens, "action_ranges": [(start, len(tokens))], "reward": 3, "scores": 0.75,
                  "extra_logs": {"words": 2}}
        CHANGE
        return answer
"""


def executed(tmp_path: Path, change: str = "pass", **settings):
    code = EXECUTOR.replace("CHANGE", change)
    said = Completion([30, 31, 25], [-1.0, -2.0, -3.0], False, weight_versions=[5, 5, 6])
    samples, _ = hold(agent(tmp_path, code, **settings), lambda *_: said, PROMPT)
    return samples[0]


def test_an_executor_holds_the_whole_conversation(tmp_path: Path) -> None:
    sample = executed(tmp_path)
    assert sample.tokens.tolist() == [0, 1, 2, 30, 31, 25]
    assert sample.action_mask.tolist() == [False] * 3 + [True] * 3
    assert sample.rollout_log_probs.tolist() == [0, 0, 0, -1, -2, -3]
    assert sample.weight_versions.tolist() == [0, 0, 0, 5, 5, 6]
    assert (sample.reward, sample.score) == (3.0, 0.75)
    assert sample.metrics == {"turns": 1.0, "words": 2.0}
    assert sample.truncated is False
    assert sample.turn_rewards.tolist() == [0, 0, 0, 0, 0, 3]


TWICE = """
tokens += [7]
second = await llm_engine.generate(tokens)
tokens = tokens + second.token_ids
answer |= {"observation_tokens": tokens, "action_ranges": [(3, 6), (7, 10)]}
"""


@pytest.mark.parametrize(
    ("given", "parts", "reward"), [("{}", (0, 3), 3.0), ('{"reward": None, "turn_rewards": (2, -0.5)}', (2, -0.5), 1.5)]
)
def test_an_executor_may_pay_each_range(tmp_path: Path, given: str, parts: tuple[float, float], reward: float) -> None:
    sample = executed(tmp_path, (TWICE + f"answer |= {given}").strip().replace("\n", "\n        "))
    assert sample.turn_rewards.tolist() == [0, 0, 0, 0, 0, parts[0], 0, 0, 0, parts[1]]
    assert sample.reward == reward


def test_an_executor_may_drop_the_end_of_an_answer_and_say_something_after_it(tmp_path: Path) -> None:
    sample = executed(tmp_path, 'answer |= {"observation_tokens": tokens[:5] + [7], "action_ranges": [(3, 5)]}')
    assert sample.tokens.tolist() == [0, 1, 2, 30, 31, 7]
    assert sample.action_mask.tolist() == [False, False, False, True, True, False]
    assert sample.rollout_log_probs.tolist() == [0, 0, 0, -1, -2, 0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('tokens[3] = 4', "do not encode a text of it again"),
        ('tokens[0] = 9', "do not encode a text of it again"),
        ('answer["action_ranges"] = [(2, 6)]', "do not encode a text of it again"),
        ('answer["action_ranges"] = []', "nothing to learn"),
        ('answer["action_ranges"] = [(3, 3)]', "in order, apart and not empty"),
        ('answer["action_ranges"] = [(3, 7)]', r"\(3, 7\) of 6 tokens"),
        ('answer["action_ranges"] *= 2', "in order, apart and not empty"),
        ('answer["reward"] = float("nan")', "reward is nan"),
        ('answer["reward"] = "much"', "reward must be a number, not 'much'"),
        ('answer["scores"] = float("inf")', "scores is inf"),
        ('answer["extra_logs"] = {"words": None}', "words must be a number"),
        ('del answer["reward"]', "must return a dict with 'reward'"),
        ('answer["turn_rewards"] = [1.0]', "both reward and turn_rewards"),
        ('answer |= {"reward": None, "turn_rewards": [1, 2]}', "must be a list of 1 numbers, one an action range"),
        ('answer |= {"reward": None, "turn_rewards": 1.0}', "must be a list of 1 numbers, one an action range"),
        ('answer |= {"reward": None, "turn_rewards": [float("nan")]}', r"turn_rewards\[0\] is nan"),
        ("answer = None", "must return a dict with 'observation_tokens', not NoneType"),
        ('answer["observation_tokens"] = tokens * 20', "120 tokens; .* allow 100"),
        ("await llm_engine.generate([1] * 100)", "has all the tokens"),
        ('await llm_engine.generate([1], {"temperature": 0.5})', "change temperature from 1.0 to 0.5"),
        ('await llm_engine.generate([1], {"best_of": 2})', "are not those of SamplingParams"),
        ("1 / 0", "it raised ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "it raised SystemExit: 3"),
    ],
)  # fmt: skip
def test_what_an_executor_may_not_do(tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(RewardFailed, match=rf"agent.py, conversation 0 \(prompt 'abc'\): .*{said}"):
        executed(tmp_path, change)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("", "define one of the classes AgentInstance and AgentExecutor"),
        (ECHO + EXECUTOR, "define one of the classes"),
        ("class AgentInstance:\n    def reset(self, states): ...", "AgentInstance must have a method step"),
        ("class AgentExecutor: ...", "AgentExecutor must have a method execute"),
        ("AGENT_CONTRACT = 2\n" + ECHO, "version 2 of the contract, this is version 1"),
    ],
)
def test_files_that_do_not_keep_the_contract(tmp_path: Path, code: str, said: str) -> None:
    with pytest.raises(RewardFailed, match=f"--agent_func_path .*agent.py: .*{said}"):
        agent(tmp_path, code)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(RewardFailed, match="--agent_func_path nowhere.py: no such Python file"):
        load_executor("nowhere.py")


def test_the_flags_become_an_agent(tmp_path: Path) -> None:
    (tmp_path / "agent.py").write_text(ECHO)
    flags = "--pretrain m --prompt_data p --local --prompt_max_len 30 --generate_max_len 12 --reward_timeout 4"
    made = agent_of(read(PPOConfig, [*flags.split(), "--agent_func_path", str(tmp_path / "agent.py")]))
    assert made is not None
    assert (made.max_length, made.timeout_s, made.drops_failures) == (42, 4.0, False)
    assert agent_of(read(PPOConfig, [*flags.split(), "--remote_rm_url", "r.py", "--reward_timeout", "180"])) is None


def test_collate_keeps_the_holes(tmp_path: Path) -> None:
    samples, _ = hold(agent(tmp_path, THREE_TURNS), answer, PROMPT, n=2)
    batch = collate(samples, pad_token_id=0)
    assert batch.action_mask.sum().item() == 12
    assert batch.turn_rewards.sum(dim=1).tolist() == batch.rewards.tolist() == [1.25, 1.25]
    assert torch.equal(batch.rollout_log_probs != 0, batch.action_mask)
