"""The demo's problems, its two styles of answering, and the reward that tells them apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from openrlhf.cli.demo import right
from openrlhf.demo.reward import answer, reward_func
from openrlhf.demo.task import CARELESS_SHARE, careful, careless, problems, question, write_data


@pytest.mark.parametrize(
    ("problem", "slow", "quick"),
    [
        ((47, 85), "7+5=12;4+8+1=13#132", "#22"),
        ((12, 34), "2+4=6;1+3+0=4#46", "#46"),
        ((99, 99), "9+9=18;9+9+1=19#198", "#88"),
        ((50, 50), "0+0=0;5+5+0=10#100", "#00"),
        ((19, 11), "9+1=10;1+1+1=3#30", "#20"),
    ],
)
def test_two_styles_by_hand(problem: tuple[int, int], slow: str, quick: str) -> None:
    assert careful(problem) == slow
    assert careless(problem) == quick


def test_the_careful_are_always_right_and_the_careless_only_without_any_carry() -> None:
    for a, b in problems():
        label = str(a + b)
        assert right(question((a, b)) + careful((a, b)), label)
        carries = a % 10 + b % 10 >= 10 or a + b >= 100
        assert right(question((a, b)) + careless((a, b)), label) is not carries
    share = sum(right(careless(p), str(sum(p))) for p in problems()) / len(problems())
    assert 0.2 < share < 0.3  # so a reward has something to teach


@pytest.mark.parametrize(
    ("text", "found"),
    [("1+1=#2<|im_end|>", "2"), ("#1#2", "2"), ("#2 ", "2"), ("12", ""), ("", ""), ("#", ""), ("#2<|pad|>#3", "3")],
)
def test_the_answer_stands_after_the_last_mark(text: str, found: str) -> None:
    assert answer(text) == found


def test_the_reward_is_one_for_right_and_zero_for_wrong() -> None:
    queries = ["47+85=7+5=12;4+8+1=13#132<|im_end|>", "47+85=#22<|im_end|>", "47+85=132", "47+85=#1320"]
    assert reward_func(queries, [""] * 4, ["132"] * 4) == [1.0, 0.0, 0.0, 0.0]


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_files(tmp_path: Path) -> None:
    write_data(tmp_path, seed=0, demonstrations=2000, held_out=100)
    shown, prompts, held_out = (rows(tmp_path / f"{name}.jsonl") for name in ("sft", "prompts", "held_out"))
    assert (len(shown), len(prompts), len(held_out)) == (2000, 8000, 100)
    asked = {row["input"] for row in held_out}
    assert not asked & {row["input"] for row in prompts}
    assert not asked & {row["input"] for row in shown}
    for row in prompts + held_out:
        a, b = row["input"].removesuffix("=").split("+")
        assert row["label"] == str(int(a) + int(b))
    guesses = sum(row["output"].startswith("#") for row in shown) / len(shown)
    assert guesses == pytest.approx(CARELESS_SHARE, abs=0.04)


def test_the_seed_decides_the_files(tmp_path: Path) -> None:
    texts = []
    for number, seed in enumerate([0, 0, 1]):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_data(folder, seed=seed, demonstrations=20, held_out=5)
        texts.append((folder / "sft.jsonl").read_text())
    assert texts[0] == texts[1] != texts[2]
