"""The example files do what they say, on strings and tensors made by hand."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from openrlhf.algorithms.advantages import AdvantageInputs, estimate_advantages, find_estimator
from openrlhf.algorithms.registry import load_from_file
from openrlhf.rollout.engine import Completion
from openrlhf.rollout.rewards import call_reward_function, load_reward_function
from tests.docs.shell import ROOT

ESTIMATOR = f"{ROOT}/examples/python/estimator.py:above_average"


def rewards_of(file: str, prompt: str, responses: list[str], label: str) -> tuple[list[float], list[float]]:
    function = load_reward_function(str(ROOT / file))
    many = len(responses)
    answer = call_reward_function(function, [prompt + r for r in responses], [prompt] * many, [label] * many)
    return answer.rewards, answer.scores


def test_every_python_example_is_tested_here() -> None:
    assert {path.name for path in (ROOT / "examples/python").glob("*.py")} == {
        *("reward.py", "math_reward.py", "estimator.py", "guess.py", "calculator.py"),
    }


def test_the_least_reward_file() -> None:
    rewards, scores = rewards_of("examples/scripts/reward_func.py", "Q ", ["a", "b", "c"], "")
    assert scores == rewards and all(0 <= reward <= 1 for reward in rewards) and len(set(rewards)) == 3


def test_reward_file() -> None:
    responses = ["5", "It is 4, no, 5.<|im_end|>", "5 or 4", "no idea", "5.0", "x" * 500 + " 5", "1,005"]
    rewards, scores = rewards_of("examples/python/reward.py", "What is 2 + 3? ", responses, "5")
    assert rewards == [1.0, 1.0, 0.0, 0.0, 1.0, 0.8, 0.0]
    assert scores == [1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0]


def test_reward_file_reads_only_the_response() -> None:
    rewards, _ = rewards_of("examples/python/reward.py", "Is it 5? ", ["yes"], "5")
    assert rewards == [0.0]


def test_reward_file_reads_gsm8k_labels() -> None:
    _, scores = rewards_of("examples/python/reward.py", "Q ", ["so 1,200.", "-1200"], "3 * 400 = 1200\n#### 1,200")
    assert scores == [1.0, 0.0]


def test_the_mathematics_reward() -> None:
    responses = ["so 7", "\\boxed{7}<|im_end|>", "#### $7.00", "#### 8\nor 7", "\\boxed{7", "", "\\frac{14}{2}", "七"]
    rewards, scores = rewards_of("examples/python/math_reward.py", "What is 3 + 4? #### 7 ", responses, "3+4\n#### 7")
    assert rewards == scores == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    function = load_reward_function(str(ROOT / "examples/python/math_reward.py"))
    assert function(["Q 7", "Q no"], ["Q ", "Q "], ["7", "7"])["extra_logs"] == {"answered": [1.0, 0.0]}
    with pytest.raises(ValueError, match="--label_key"):
        function(["Q 7"], ["Q "], [""])


def test_estimator_file() -> None:
    """Groups 0 and 1 with means 2 and 5; only 3 > 2 teaches, by 1; the KL reward of −0.25 a token comes on top."""
    inputs = AdvantageInputs(
        rewards=torch.tensor([1.0, 3.0, 5.0, 5.0]),
        kl_rewards=torch.tensor([[0.0, 0.0, 0.0], [9.0, -0.25, -0.25], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
        action_mask=torch.tensor([[False, True, True], [False, True, True], [False, True, False], [False, True, True]]),
        groups=torch.tensor([0, 0, 1, 1]),
        values=None,
        gamma=1.0,
        lambd=1.0,
        reward_clip=(-10.0, 10.0),
    )
    advantages, returns = estimate_advantages(ESTIMATOR, inputs)
    assert advantages.tolist() == [[0, 0, 0], [0, 0.5, 0.75], [0, 0, 0], [0, 0, 0]]
    assert returns.tolist() == advantages.tolist()


def test_estimator_file_needs_groups() -> None:
    assert find_estimator(ESTIMATOR).needs_groups
    assert not find_estimator(ESTIMATOR).needs_critic


def test_gsm8k_prepare(tmp_path: Path) -> None:
    """The shortest problems, shortest first, and a folder that loads, whose tokenizer takes what the run hands it."""
    rows = [{"question": question, "answer": "#### 7"} for question in ("What is 3 + 4?", "What is 30 + 40?", "3+4?")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    load_from_file(f"{ROOT}/examples/gsm8k/prepare.py:main", "test")(str(tmp_path / "rows.jsonl"), str(tmp_path), "2")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in (tmp_path / "base").iterdir()}
    lines = (tmp_path / "problems.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [rows[2], rows[0]]


@pytest.mark.parametrize("lines", [False, True])
def test_preferences_prepare(lines: bool, tmp_path: Path) -> None:
    rows = [
        {"prompt": "one", "chosen": "yes", "rejected": "no"},
        {"prompt": [{"role": "user", "content": " two "}], "chosen": {"content": "yes"}, "rejected": {"value": "no"}},
        {"conversations": [{"value": "before"}, {"value": "three"}], "chosen": {"value": "yes"}, "rejected": "no"},
        {"prompt": "long " * 100, "chosen": "yes", "rejected": "no"},
    ]
    file = tmp_path / "rows"
    file.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows), encoding="utf-8")
    load_from_file(f"{ROOT}/examples/preferences/prepare.py:main", "test")(str(file), str(tmp_path))
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert pairs == [{"prompt": p, "chosen": "yes", "rejected": "no"} for p in ("one", "two", "three")]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in (tmp_path / "base").iterdir()}


def played(folder: str, label: str, turns: list[str]) -> list[dict[str, Any]]:
    """What the game says to each turn."""
    game = load_from_file(f"{ROOT}/examples/python/{folder}:AgentInstance", "test")()
    assert asyncio.run(game.reset({"observation": "Guess:", "label": label})) == {"observation": "Guess:"}
    return [asyncio.run(game.step({"action_text": turn, "label": label})) for turn in turns]


def test_the_guessing_game() -> None:
    low, foolish, hit = played("guess.py", "4", ["2<|im_end|>", "1", " 4<|im_end|>"])
    assert [s["rewards"] for s in (low, foolish, hit)] == [0.0, -0.5, 1.0]
    assert [s["scores"] for s in (low, foolish, hit)] == [0.0, 0.0, 1.0]
    assert [s["done"] for s in (low, foolish, hit)] == [False, False, True]
    assert low["environment_feedback"] == " higher: "
    assert [s["environment_feedback"] for s in played("guess.py", "1", ["3", "2"])] == [" lower: "] * 2
    assert [s["done"] for s in played("guess.py", "1", ["3", "2", "4"])] == [False, False, True]
    (nonsense,) = played("guess.py", "1", ["11"])
    assert (nonsense["rewards"], nonsense["done"]) == (-1.0, True)


@pytest.mark.parametrize(
    ("turns", "tokens", "ranges", "reward", "calls"),
    [
        (["<calc>3+4</calc><|im_end|>", "7<|im_end|>"], "Q<calc>3+4</calc>. 7 7.", [(1, 18), (21, 23)], 1.0, 1.0),
        (["so <calc>3+5</calc>", "8"], "Qso <calc>3+5</calc> 8 8", [(1, 20), (23, 24)], 0.0, 1.0),
        (["7<|im_end|>"], "Q7.", [(1, 3)], 1.0, 0.0),
        (["<calc>3-4</calc>"], "Q<calc>3-4</calc>", [(1, 17)], 0.0, 0.0),
    ],
)
def test_the_calculator(
    turns: list[str], tokens: str, ranges: list[tuple[int, int]], reward: float, calls: float
) -> None:
    """Letters are tokens, and a full stop is the end of a turn."""

    class Tokenizer:
        def __call__(self, text: str, add_special_tokens: bool) -> SimpleNamespace:
            return SimpleNamespace(input_ids=[ord(letter) for letter in text])

        def decode(self, ids: list[int]) -> str:
            return "".join(map(chr, ids)).replace(".", "<|im_end|>")

    class Policy:
        prompt_tokens = (ord("Q"),)

        async def generate(self, asked: list[int], params: Any) -> Completion:
            said = next(coming).replace("<|im_end|>", ".")
            return Completion([ord(letter) for letter in said], [0.0] * len(said), False, [0] * len(said))

    coming = iter(turns)
    agent = load_from_file(f"{ROOT}/examples/python/calculator.py:AgentExecutor", "test")()
    answer = asyncio.run(agent.execute("Q", "7", None, 100, Tokenizer(), Policy()))
    assert "".join(map(chr, answer["observation_tokens"])) == tokens
    assert answer["action_ranges"] == ranges
    assert (answer["reward"], answer["extra_logs"]) == (reward, {"calls": calls})
