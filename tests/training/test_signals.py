"""A signal asks a run to stop; a second one does not ask."""

from __future__ import annotations

import os
import signal
from typing import NoReturn

import pytest

from openrlhf.training import signals
from openrlhf.training.signals import stop_requests


class Exited(Exception):
    pass


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(code: int) -> NoReturn:
        raise Exited(code)

    monkeypatch.setattr(os, "_exit", leave)


@pytest.mark.usefixtures("exits")
def test_the_first_asks_and_the_second_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "SAME_SIGNAL_S", -1.0)
    with stop_requests(catch=True) as request:
        assert request.name is None
        signal.raise_signal(signal.SIGTERM)
        assert request.name == "SIGTERM"
        with pytest.raises(Exited, match="130"):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("exits")
def test_a_launcher_that_passes_on_what_the_terminal_sent_is_one_signal() -> None:
    with stop_requests(catch=True) as request:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert request.name == "SIGINT"


@pytest.mark.parametrize("catch", [True, False])
def test_the_handlers_of_before_come_back(catch: bool) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with stop_requests(catch):
        assert (signal.getsignal(signal.SIGTERM) != before[0]) == catch
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
