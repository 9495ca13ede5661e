"""``openrlhf preview COMMAND`` is the command with ``--preview``: it shows rows and ends before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import openrlhf.models.load
from openrlhf.cli.main import main
from openrlhf.models.tiny import build_tokenizer
from tests.modelscope import offer
from tests.recipes.helpers import words, write_rows

CHAT = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "1"}]
ROWS = [
    {
        "q": f"{i}+1=", "a": str(i + 1), "chosen": "yes", "rejected": "no", "label": i % 2 == 0, "m": CHAT,
        "steps": "2+3=5\n 5*2=11\n", "marks": ["+", "-"],
    }
    for i in range(5)
]  # fmt: skip
ROWS.append({"q": "", "a": "", "chosen": "", "rejected": "", "label": True, "m": [], "steps": "\n", "marks": ["+"]})
COMMANDS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "sft": ({"input_key": "q", "output_key": "a"}, ["row 0 ·", "User: 0+1=\nAssistant: ⟦1<|im_end|>⟧"]),
    "kd": ({"input_key": "q", "output_key": "a"}, ["User: 0+1=\nAssistant: ⟦1<|im_end|>⟧"]),
    "rm": ({"prompt_key": "q"}, ["row 0 · chosen", "0+1=⟦yes<|im_end|>⟧", "row 0 · rejected", "0+1=⟦no<|im_end|>⟧"]),
    "dpo": ({"prompt_key": "q"}, ["row 0 · chosen", "0+1=⟦yes<|im_end|>⟧", "row 0 · rejected", "0+1=⟦no<|im_end|>⟧"]),
    "kto": ({"input_key": "q", "output_key": "a"}, ["row 0 · desirable", "row 1 · undesirable"]),
    "prm": (
        {"input_key": "steps", "label_key": "marks", "placeholder_token": "\n", "reward_tokens": ("+", "-")},
        ["2+3=5⟦\n⟧=+ 5*2=11⟦\n⟧=-"],
    ),
    "ppo": ({"input_key": "q", "label_key": "a"}, ["row 0 · prompt from default, label '1'", "\n0+1=\n", "ids "]),
}


@pytest.fixture
def flags(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    def refuse(*anything: object) -> None:
        raise AssertionError("a preview loads no model")

    monkeypatch.setattr(openrlhf.models.load, "_load", refuse)
    return {
        "pretrain": tiny_folder, "dataset": write_rows(tmp_path / "rows.jsonl", ROWS), "save_path": tmp_path / "out",
        "train_batch_size": 8, "micro_train_batch_size": 8, "preview": 2,
    }  # fmt: skip


def of(verb: str, flags: dict[str, Any]) -> dict[str, Any]:
    """The flags of a command and those that it needs besides."""
    flags = flags | COMMANDS[verb][0]
    if verb == "kd":
        return flags | {"teacher_model": flags["pretrain"]}
    if verb == "ppo":
        reward = Path(flags["save_path"]).with_name("reward.py")
        reward.write_text("def reward_func(queries, prompts, labels):\n    return [1.0] * len(queries)\n")
        extra = {"prompt_data": flags.pop("dataset"), "remote_rm_url": reward, "rollout_batch_size": 8}
        return flags | extra | {"advantage_estimator": "reinforce", "local": True}
    return flags


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_command_shows_rows_drops_and_lengths_and_writes_nothing(
    verb: str, flags: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    main([verb, *words(of(verb, flags))])
    out = capsys.readouterr().out
    for part in COMMANDS[verb][1]:
        assert part in out
    assert "row 1 ·" in out and "row 2 ·" not in out
    kept = "6 of 6 rows kept" if verb == "prm" else "5 of 6 rows kept; dropped: empty "
    assert kept in out
    assert "shortest" in out
    assert not Path(flags["save_path"]).exists()


def test_the_verb_shows_three_rows_unless_told(flags: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    line = of("sft", flags)
    main(["preview", "sft", *words(line)])
    assert "row 2 ·" not in capsys.readouterr().out
    line.pop("preview")
    main(["preview", "sft", *words(line)])
    out = capsys.readouterr().out
    assert "row 2 ·" in out and "row 3 ·" not in out


@pytest.mark.parametrize(
    ("verb", "flag"), [("dpo", "ref_pretrain"), ("kd", "teacher_model"), ("ppo", "critic_pretrain")]
)
def test_a_model_with_another_vocabulary_is_refused_before_a_model_is_loaded(
    verb: str, flag: str, flags: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_tokenizer(tmp_path / "stranger", ["quite another text"] * 3, vocab_size=300)
    line = of(verb, flags) | {flag: tmp_path / "stranger"} | ({"advantage_estimator": "gae"} if verb == "ppo" else {})
    with pytest.raises(SystemExit) as stop:
        main([verb, *words(line)])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"--{flag} {tmp_path}/stranger: its tokenizer has another vocabulary")


@pytest.mark.parametrize("line", [[], ["stf"], ["demo"], ["--pretrain", "x"]])
def test_the_verb_needs_a_command(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["preview", *line])
    assert stop.value.code == 2
    assert "one of sft, rm, dpo, kto, kd, prm, ppo" in capsys.readouterr().err


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_command_takes_model_and_rows_from_modelscope(
    verb: str, flags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Its package is a stand-in: the real hub cannot be reached from here."""
    rows = tmp_path / "downloaded"
    rows.mkdir()
    flags["dataset"].rename(rows / "train.jsonl")
    asked = offer(monkeypatch, {"org/tiny": flags["pretrain"]}, {"org/rows": rows})
    main([verb, *words(of(verb, flags | {"pretrain": "org/tiny", "dataset": "org/rows", "use_ms": True}))])
    assert COMMANDS[verb][1][0] in capsys.readouterr().out
    assert set(asked) == {"org/tiny", "org/rows"}


@pytest.mark.parametrize("verb", [verb for verb in COMMANDS if verb != "prm"])
def test_strict_data_ends_the_command_at_an_unusable_row(
    verb: str, flags: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([verb, *words(of(verb, flags) | {"strict_data": True})])
    assert stop.value.code == 2
    assert "--strict_data: not every row of --" in (shown := capsys.readouterr().err)
    assert "in 1 (row 5; the first is {" in shown
