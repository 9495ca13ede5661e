"""``openrlhf interactive_chat`` with its lines from a pipe: the answers are those of our own sampling loop, in which
the repetition penalty is tested by hand."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from openrlhf.backends import hf_stream
from openrlhf.backends.hf_generate import HFGenerate
from openrlhf.cli.interactive_chat import main
from openrlhf.config.groups import ModelConfig
from openrlhf.models.load import load_causal_lm, load_tokenizer
from openrlhf.rollout.engine import SamplingParams
from tests.recipes.helpers import words

LEN = 64


def expected(folder: Path, prompt: str, penalty: float) -> str:
    """The greedy continuation of ``prompt`` up to LEN tokens in all."""
    config = ModelConfig(pretrain=str(folder))
    tokenizer = load_tokenizer(str(folder), config)
    tokens = tokenizer(prompt, add_special_tokens=False).input_ids
    params = SamplingParams(
        temperature=0, max_new_tokens=LEN - len(tokens), stop_token_ids=(tokenizer.eos_token_id,),
        repetition_penalty=penalty,
    )  # fmt: skip
    (answer,) = HFGenerate(load_causal_lm(str(folder), config).hf).generate([tokens], params)
    return str(tokenizer.decode(answer.token_ids, skip_special_tokens=True))


def chat(
    lines: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], **flags: Any
) -> str:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
    main(words({"pretrain": folder, "greedy_sampling": True, "max_len": LEN, **flags}))
    return capsys.readouterr().out


@pytest.mark.parametrize("penalty", [1.0, 50.0])
def test_the_penalty_is_applied(tiny_folder: Path, monkeypatch, capsys, penalty: float) -> None:
    answer = expected(tiny_folder, "User: hello\nAssistant: ", penalty)
    assert chat(["hello"], tiny_folder, monkeypatch, capsys, repetition_penalty=penalty) == answer + "\n"
    assert answer != expected(tiny_folder, "User: hello\nAssistant: ", 51.0 - penalty)


def test_what_was_said_is_remembered_until_it_is_cleared(tiny_folder: Path, monkeypatch, capsys) -> None:
    """An answer of 4 tokens, so that there is room for the next question."""
    real = hf_stream.stream_answer

    def short(model: Any, tokenizer: Any, tokens: list[int], params: SamplingParams) -> list[int]:
        asked.append(tokenizer.decode(tokens))
        return real(model, tokenizer, tokens, SamplingParams(temperature=0, max_new_tokens=4))

    asked: list[str] = []
    monkeypatch.setattr(hf_stream, "stream_answer", short)
    flags = {"apply_chat_template": True, "max_len": 400}
    answers = chat(
        ["one", "", "two", "/clear", "two", "/nothing", "/exit", "three"], tiny_folder, monkeypatch, capsys, **flags
    )
    first = "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n"
    second = "<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n"
    assert asked[0] == first and asked[2] == second and len(asked) == 3
    said = asked[1].removeprefix(first).removesuffix("<|im_end|>\n" + second)
    assert asked[1] == f"{first}{said}<|im_end|>\n{second}" and said
    assert answers.startswith(said)
    assert "there is no '/nothing'. /clear forgets the conversation" in answers


def test_before_and_behind_the_prompt(tiny_folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "before.txt").write_text("Be kind.\n")
    flags = {
        "ta_prompt": tmp_path / "before.txt",
        "enable_csft": True,
        "csft_prompt": "<s>: 9",
        "input_template": "Q {}:",
    }
    answer = expected(tiny_folder, "Be kind.\nQ hello:<s>: 9 ", 1.2)
    assert chat(["hello"], tiny_folder, monkeypatch, capsys, **flags) == answer + "\n"


def test_what_is_too_long_is_said(tiny_folder: Path, monkeypatch, capsys) -> None:
    shown = chat(["x" * 100, "hello", "x" * 20], tiny_folder, monkeypatch, capsys)
    assert "--max_len leaves room for 48\n" in shown
    assert "(1 of 1 exchanges are forgotten, for --max_len 64)" in shown


def test_an_answer_can_be_stopped(tiny_folder: Path, monkeypatch, capsys) -> None:
    def stopped(*args: Any) -> list[int]:
        raise KeyboardInterrupt

    monkeypatch.setattr(hf_stream, "stream_answer", stopped)
    assert chat(["one", "two"], tiny_folder, monkeypatch, capsys).count("(stopped; this exchange is forgotten)") == 2


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"ta_prompt": "/nowhere.txt"}, "--ta_prompt /nowhere.txt cannot be read as text"),
        ({"pretrain": "/nowhere/model"}, "--pretrain /nowhere/model: no tokenizer could be loaded"),
        ({"csft_prompt": "x"}, "--csft_prompt goes behind the prompts with --enable_csft"),
        ({"input_template": "no place"}, "--input_template 'no place' has no {}"),
        ({"apply_chat_template": True, "tokenizer_chat_template": "{{ raise_exception('never') }}"}, "refuses this"),
    ],
    ids=range(5),
)
def test_refusals(flags: dict[str, Any], sentence: str, tiny_folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(SystemExit) as stop:
        main(words({"pretrain": tiny_folder, **flags}))
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_from_a_pipe_by_its_module(tiny_folder: Path) -> None:
    command = [sys.executable, "-m", "openrlhf.cli.interactive_chat", "--pretrain", str(tiny_folder), "--max_len", "64"]
    done = subprocess.run(command, input="hello\n/exit\n", capture_output=True, text=True, timeout=120)
    assert (done.returncode, len(done.stdout.strip()) > 0, "Traceback" in done.stderr) == (0, True, False)
    assert "> " not in done.stdout[:2]


def test_lines_that_are_no_text_are_a_sentence(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8"))
    with pytest.raises(SystemExit) as stop:
        main(words({"pretrain": tiny_folder, "max_len": LEN}))
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("the input is not utf-8 text; save the file")
