"""How a command ends that went well."""

from __future__ import annotations

import atexit
import os
import sys
from concurrent.futures import Future
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch.distributed as dist

from openrlhf.cli.run_command import run_command
from openrlhf.training.roles import gather


class Ended(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was done at the end, in order."""
    done: list[Any] = []

    def end(code: int) -> None:
        done.append(code)
        raise Ended

    monkeypatch.setattr(atexit, "_run_exitfuncs", lambda: done.append("exit functions"))
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    return done


def main_is(name: str | None, ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("__main__")
    module.__spec__ = None if name is None else ModuleSpec(name, None)
    monkeypatch.setitem(sys.modules, "__main__", module)
    monkeypatch.setattr(dist, "get_world_size", lambda: ranks)


def test_one_rank_of_several_ends_before_the_interpreter_is_taken_down(ends: list[Any], monkeypatch: Any) -> None:
    main_is("openrlhf.cli.train_sft", 2, monkeypatch)
    with pytest.raises(Ended):
        run_command(lambda config: ends.append("run"), None)
    assert ends == ["run", "exit functions", 0]


@pytest.mark.parametrize(("name", "ranks"), [("openrlhf.cli.train_sft", 1), ("pytest.__main__", 2), (None, 2)])
def test_a_process_that_does_more_goes_on(name: str | None, ranks: int, ends: list[Any], monkeypatch: Any) -> None:
    main_is(name, ranks, monkeypatch)
    run_command(lambda config: ends.append("run"), None)
    assert ends == ["run"]


def test_an_error_is_not_hidden(ends: list[Any], monkeypatch: Any) -> None:
    main_is("openrlhf.cli.train_sft", 2, monkeypatch)

    def fails(config: None) -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        run_command(fails, None)
    assert ends == []


def test_a_deadline_that_passes_is_told_in_a_sentence(ends: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    def waits(config: None) -> None:
        gather(Future(), deadline_s=0.01)

    with pytest.raises(Ended):
        run_command(waits, None)
    assert ends == [3]
    assert capsys.readouterr().err == "1 of 1 calls did not answer within 0 s\n"
