"""``openrlhf ppo --agent_func_path``: the two examples learn, after an SFT that shows mostly bad habits."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openrlhf.cli import train_ppo_ray, train_sft
from openrlhf.models.tiny import build_model, build_tokenizer
from tests.docs.shell import ROOT
from tests.recipes.helpers import column, metrics, run, words, write_rows

EXAMPLES = ROOT / "examples/python"
END = "<|im_end|>"


def blind_guess(rng: random.Random) -> dict[str, str]:
    """A moment of a game of ``guess.py``; three players of five do not listen."""
    number, text, left = rng.randrange(1, 5), "Guess:", {1, 2, 3, 4}
    for _ in range(rng.randrange(3)):
        guess = rng.choice(sorted(left - {number}) or [number % 4 + 1])
        text += f"{guess}{END}" + (" higher: " if guess < number else " lower: ")
        left = {n for n in left if (n > guess if guess < number else n < guess)}
    listens = rng.random() < 0.4
    return {"input": text, "output": str(rng.choice(sorted(left)) if listens else rng.randrange(1, 5))}


def rash_answer(rng: random.Random) -> dict[str, str]:
    """Half of the sums are answered by anything, the others with the calculator."""
    a, b, kind = rng.randrange(1, 6), rng.randrange(1, 6), rng.randrange(4)
    call = f"<calc>{a}+{b}</calc>"
    if kind < 2:
        return {"input": f"{a}+{b}=", "output": str(rng.randrange(2, 11))}
    if kind == 2:
        return {"input": f"{a}+{b}=", "output": call}
    return {"input": f"{a}+{b}={call}{END} {a + b} ", "output": str(a + b)}


def taught(folder: Path, words: str, rows: list[dict[str, str]], epochs: int, scheduler: str) -> Path:
    """What SFT makes of the rows; the words are whole tokens."""
    tokenizer = build_tokenizer(folder / "base", [words] * 50, vocab_size=300)
    build_model(folder / "base", vocab_size=len(tokenizer))
    flags = {
        "pretrain": folder / "base", "dataset": write_rows(folder / "sft.jsonl", rows), "input_template": "{}",
        "output_key": "output", "max_len": 64, "max_epochs": epochs, "train_batch_size": 16,
        "micro_train_batch_size": 16, "learning_rate": 2e-3, "lr_scheduler": scheduler, "save_path": folder / "sft",
    }  # fmt: skip
    return run(train_sft.main, flags)


@pytest.fixture(scope="module")
def player(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(0)
    return taught(
        tmp_path_factory.mktemp("player"),
        " higher: lower: Guess:",
        [blind_guess(rng) for _ in range(1500)],
        3,
        "constant",
    )


@pytest.fixture(scope="module")
def pupil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(0)
    return taught(
        tmp_path_factory.mktemp("pupil"), "<calc></calc>", [rash_answer(rng) for _ in range(3000)], 4, "cosine"
    )


def game(player: Path, folder: Path, **more: Any) -> dict[str, Any]:
    prompts = [{"input": "Guess:", "label": 1 + row % 4} for row in range(32)]
    return {
        "local": True, "pretrain": player, "agent_func_path": EXAMPLES / "guess.py", "label_key": "label",
        "prompt_data": write_rows(folder / "prompts.jsonl", prompts), "prompt_max_len": 16, "generate_max_len": 32,
        "rollout_batch_size": 32, "n_samples_per_prompt": 8, "train_batch_size": 64, "micro_train_batch_size": 64,
        "micro_rollout_batch_size": 256, "advantage_estimator": "group_norm", "actor_learning_rate": 7e-4,
        "lr_scheduler": "constant", "init_kl_coef": 0, "save_path": folder / "out",
    } | more  # fmt: skip


def sums(pupil: Path, folder: Path, **more: Any) -> dict[str, Any]:
    rows = [{"input": f"{a}+{b}=", "label": a + b} for a in range(1, 6) for b in range(1, 6)][:24]
    flags = game(
        pupil, folder, agent_func_path=EXAMPLES / "calculator.py", rollout_batch_size=24,
        actor_learning_rate=3e-4, prompt_data=write_rows(folder / "sums.jsonl", rows),
    )  # fmt: skip
    return flags | more


def end(folder: Path, name: str) -> float:
    """Mean over the last three steps."""
    return sum(column(folder, name)[-3:]) / 3


@pytest.mark.slow
def test_the_guessing_game_is_learned(player: Path, tmp_path: Path) -> None:
    out = run(train_ppo_ray.main, game(player, tmp_path, num_episodes=26))
    reward = column(out, "reward")
    assert reward[0] < 0.6
    assert end(out, "reward") > reward[0] + 0.1
    assert max(column(out, "engine_log_prob_diff")) < 1e-4  # in every turn the engine sampled from what is trained
    assert min(column(out, "reward/turns")) > 1.5


@pytest.mark.slow
def test_the_calculator_is_learned(pupil: Path, tmp_path: Path) -> None:
    out = run(train_ppo_ray.main, sums(pupil, tmp_path, num_episodes=16))
    right, calls = column(out, "reward"), column(out, "reward/calls")
    assert right[0] < 0.55
    assert end(out, "reward") > right[0] + 0.2
    assert end(out, "reward/calls") > calls[0] + 0.2  # by the tool, not by heart
    assert max(column(out, "engine_log_prob_diff")) < 1e-4


# A coin pays at the end of each conversation; ``scores`` stay its own. (Paid what an earlier conversation was worth,
# those that end late get more, since the worth of the first to end is mostly nothing: that teaches to take turns.)
COIN = """
import random
from calculator import AgentExecutor as Calculator
from guess import AgentInstance as Game

coin = random.Random(0)
"""
COIN_GAME = """
class AgentInstance(Game):
    async def step(self, states):
        answer = await super().step(states)
        return answer | {"rewards": float(answer["done"] and coin.randrange(2))}
"""
COIN_SUMS = """
class AgentExecutor(Calculator):
    async def execute(self, *given, **named):
        answer = await super().execute(*given, **named)
        return answer | {"reward": float(coin.randrange(2))}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "model", "file"), [(game, "player", COIN_GAME), (sums, "pupil", COIN_SUMS)], ids=["game", "sums"]
)
def test_a_coin_teaches_nothing(
    flags: Callable[..., dict[str, Any]], model: str, file: str, request: pytest.FixtureRequest, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.syspath_prepend(EXAMPLES)
    (tmp_path / "coin.py").write_text(COIN + file)
    more = {"agent_func_path": tmp_path / "coin.py", "num_episodes": 16}
    out = run(train_ppo_ray.main, flags(request.getfixturevalue(model), tmp_path, **more))
    assert end(out, "score") < column(out, "score")[0] + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["gae", "reinforce"])
def test_a_run_with_a_seed_can_be_repeated(player: Path, tmp_path: Path, estimator: str) -> None:
    """A critic, KL in the reward, several steps on a batch, packing: nothing minds the holes of a conversation."""
    flags = game(
        player, tmp_path, num_episodes=2, advantage_estimator=estimator, init_kl_coef=0.01, train_batch_size=128,
        micro_train_batch_size=64, packing_samples=True,
    )  # fmt: skip
    first = metrics(run(train_ppo_ray.main, flags))
    again = metrics(run(train_ppo_ray.main, flags | {"save_path": tmp_path / "again"}))
    assert [row["reward"] for row in first] == [row["reward"] for row in again]
    assert first[0] == pytest.approx(again[0], rel=1e-4, abs=1e-6)


FLAKY = """
import asyncio
from guess import AgentInstance as Game

class AgentInstance(Game):
    async def step(self, states):
        if int(states["label"]) == 3:
            raise ConnectionError("the game is gone")
        return await super().step(states)
"""


def test_conversations_whose_environment_fails_are_left_out(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    (tmp_path / "flaky.py").write_text(FLAKY)
    flags = game(tiny_folder, tmp_path, num_episodes=1, agent_func_path=tmp_path / "flaky.py", generate_max_len=4)
    (row,) = metrics(run(train_ppo_ray.main, flags | {"on_reward_failure": "drop"}))
    assert row["reward/invalid"] == 0.25
    assert row["reward"] == -1.0  # a random model says no number
    with pytest.raises(SystemExit) as ended:
        train_ppo_ray.main(words(flags))
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "conversation" in said and "it raised ConnectionError: the game is gone" in said
