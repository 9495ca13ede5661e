"""``openrlhf VERB``: the right module gets the rest of the line, and is imported only then."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import openrlhf
from openrlhf.cli.main import VERBS, main


def test_alone_it_lists_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    lines = capsys.readouterr().out.splitlines()
    for verb in (
        "sft",
        "rm",
        "dpo",
        "kto",
        "kd",
        "prm",
        "ppo",
        "lora_combiner",
        "serve_rm",
        "interactive_chat",
        "demo",
    ):
        assert any(line.split()[:2] == ["openrlhf", verb] and len(line.split()) > 3 for line in lines)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"{openrlhf.__version__}\n"


@pytest.mark.parametrize(
    ("word", "near"),
    [("pppo", "ppo"), ("stf", "sft"), ("dp", "dpo"), ("quux", ", ".join(VERBS))],
)
def test_an_unknown_verb(word: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([word])
    shown = capsys.readouterr().err
    assert stop.value.code == 2
    assert repr(word) in shown
    assert near in shown


def test_the_rest_of_the_line_goes_to_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_verb_of_the_test.py").write_text("got = []\ndef main(argv=None):\n    got.append(argv)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(VERBS, "try", ("a_verb_of_the_test", "a verb of the test"))
    main(["try", "--flag", "value"])
    assert importlib.import_module("a_verb_of_the_test").got == [["--flag", "value"]]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_answers_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "--" in shown
    assert f"openrlhf {verb} " in shown


def test_the_list_of_verbs_imports_none_of_them() -> None:
    code = "import sys; from openrlhf.cli.main import main; main([]); print([m for m in sys.modules if 'cli.' in m])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    assert out.splitlines()[-1] == "['openrlhf.cli.main']"
