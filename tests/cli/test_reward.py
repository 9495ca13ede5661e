"""``openrlhf reward``: what a function or server pays, by the path that training takes, before any run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import openrlhf.models.load
from openrlhf.cli.main import main
from openrlhf.cli.reward import placed
from tests.recipes.helpers import words, write_rows
from tests.rollout.test_http import says, serving

ROWS = [{"q": f"{i}+{i}=", "a": f"it is #### {2 * i}"} for i in range(10, 20)]
# What the function is asked is what the answers of the kinds must be.
PAYS = """
def reward_func(queries, prompts, labels):
    assert all(q.startswith(p) for q, p in zip(queries, prompts))
    answers = [q[len(p):] for q, p in zip(queries, prompts)]
    rewards = []
    for answer, label in zip(answers, labels):
        if answer == label + "<|im_end|>": rewards.append(1.0)
        elif answer == "<|im_end|>": rewards.append(-1.0)
        elif answer.startswith(label + "\\n" + label[:4]): rewards.append(0.5)
        elif label.startswith(answer) and 0 < len(answer) < len(label): rewards.append(0.25)
        else: raise KeyError(answer)
    scores, rows = [r == 1 for r in rewards], [len(rewards)] * len(rewards)
    return {"rewards": rewards, "scores": scores, "extra_logs": {"rows": rows}}
"""


@pytest.fixture
def flags(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    def refuse(*anything: object) -> None:
        raise AssertionError("a trial loads no model")

    monkeypatch.setattr(openrlhf.models.load, "_load", refuse)
    return {
        "local": True, "pretrain": tiny_folder, "prompt_data": write_rows(tmp_path / "rows.jsonl", ROWS),
        "input_key": "q", "label_key": "a", "generate_max_len": 40, "remote_rm_url": tmp_path / "mine.py",
    }  # fmt: skip


def written(flags: dict[str, Any], text: str) -> dict[str, Any]:
    flags["remote_rm_url"].write_text(text)
    return flags


def lines(captured: pytest.CaptureFixture[str]) -> list[list[str]]:
    return [line.split() for line in captured.readouterr().out.splitlines()]


def test_it_shows_what_every_kind_of_answer_is_paid(flags: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    main(["reward", *words(written(flags, PAYS))])
    out = lines(capsys)
    assert out[0] == [f"{flags['remote_rm_url']},", "8", "rows", "a", "call"]
    rewards = {"right": "1", "cut": "0.25", "repeated": "0.5", "empty": "-1"}
    for line, (kind, paid) in zip(out[1:5], rewards.items(), strict=True):
        score = [] if kind == "right" else ["score", "0,"]  # shown where it differs from the reward
        assert line[:-2] == [kind, "answers", "reward", paid, f"({paid}", "to", f"{paid}),", *score, "rows", "8,"]
        assert float(line[-2]) >= 0 and line[-1] == "s"
    assert out[6] == ["row", *rewards]
    assert out[7:] == [[str(row), *rewards.values()] for row in range(8)]


def test_without_labels_the_prompt_is_what_is_cut_and_repeated(
    flags: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    del flags["label_key"]
    text = (
        "def reward_func(queries, prompts, labels):\n    return [len(q) - len(p) for q, p in zip(queries, prompts)]\n"
    )
    main(["reward", *words(written(flags, text) | {"preview": 2})])
    out = lines(capsys)
    assert [line[0] for line in out[2:5]] == ["cut", "repeated", "empty"]
    assert out[6] == ["row", "cut", "repeated", "empty"]
    assert len(out) == 9
    cut, repeated, empty = map(int, out[7][1:])
    assert (cut, empty) == (len("10+10=") // 2, len("<|im_end|>"))
    assert repeated >= 40  # tokens


@pytest.mark.parametrize(
    ("body", "remark"),
    [
        ("[3.0] * len(queries)", "note: every answer is paid 3: there is nothing to learn"),
        (
            "[float(l in q) for q, l in zip(queries, labels)]",
            "note: right answers are paid 1 on average and repeated ones 1: no less",
        ),
    ],
)
def test_it_remarks_on_a_reward_that_works_and_teaches_wrong(
    body: str, remark: str, flags: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["reward", *words(written(flags, f"def reward_func(queries, prompts, labels):\n    return {body}\n"))])
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")] == [remark]


def failing(flags: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    """The last line on the screen of a command that ends with code 2."""
    with pytest.raises(SystemExit) as stop:
        main(["reward", *words(flags)])
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("raise KeyError('seven')", "it raised KeyError: 'seven' (asked about right answers)"),
        ("return [1.0]", "rewards has 1 entries for 8 samples: [1.0] (asked about right answers)"),
        ("return [1.0] * 7 + [float('nan')]", "rewards[7] is nan; every entry must be a finite number (asked about"),
        ("return [1.0] * 7 + [float('inf')]", "rewards[7] is inf; every entry must be a finite number (asked about"),
        ("return ['good'] * 8", "rewards must be 8 numbers, not ['good', 'good'"),
        ("return {'scores': [1.0] * 8}", "it must have 'rewards'"),
        ("import os; os._exit(3)", "ended its process with code 3 (asked about right answers)"),
        ("import time; time.sleep(1000)", "did not answer within --reward_timeout 3 s"),
        # Only where nothing is said; and what may be dropped in a run is a failure here.
        (
            "return [1 / (len(q) - len(p) - len('<|im_end|>')) for q, p in zip(queries, prompts)]",
            "it raised ZeroDivisionError: division by zero (asked about empty answers)",
        ),
    ],
)
def test_what_fails_is_named_with_the_kind_of_answer(
    body: str, sentence: str, flags: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"def reward_func(queries, prompts, labels):\n    {body}\n"
    given = written(flags, text) | {"on_reward_failure": "drop"}
    shown = failing(given | ({"reward_timeout": 3} if "sleep" in body else {}), capsys)
    assert shown.startswith(f"reward_func of {flags['remote_rm_url']}") and sentence in shown


def test_a_server_is_tried_as_in_training(flags: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    with serving(says('{"rewards": [1, 2]}'), says('{"rewards": [1, NaN]}')) as server:
        given = flags | {"remote_rm_url": server.url, "micro_rollout_batch_size": 2, "preview": 2}
        shown = failing(given, capsys)
    assert server.asked[0]["query"] == [f"{row['q']}{row['a']}<|im_end|>" for row in ROWS[:2]]
    assert server.asked[0]["labels"] == [row["a"] for row in ROWS[:2]]
    assert shown.startswith(f"--remote_rm_url {server.url} answers ") and "NaN is no number" in shown
    assert shown.endswith("(asked about cut answers)")


def test_it_needs_a_function_or_a_server(flags: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    del flags["remote_rm_url"]
    assert "name it with --remote_rm_url" in failing(flags | {"reward_pretrain": flags["pretrain"]}, capsys)
    flags["remote_rm_url"] = "nowhere.py"
    assert "--remote_rm_url nowhere.py: no such Python file" in failing(flags, capsys)


def test_help_says_whose_flags_these_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["reward", "--help"])
    assert not stop.value.code
    assert "openrlhf ppo" in capsys.readouterr().out


def test_who_samples_need_not_be_said() -> None:
    assert placed(["--pretrain", "m"]) == ["--pretrain", "m", "--local"]
    for said in (["--local"], ["--vllm_num_engines=2"], ["--config", "run.yaml"]):
        assert placed(said) == said
