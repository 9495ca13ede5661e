"""A reward function in its own process: whatever it does, the answer is right or a sentence that names it."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from openrlhf.rollout.isolated import IsolatedFunction
from openrlhf.rollout.rewards import RewardFailed, Rewards, Texts, call_reward_function
from openrlhf.rollout.sources import dropping

FILE = """
import asyncio, ctypes, os, subprocess, sys, time

class Strange(Exception): pass

def reward_func(queries, prompts, labels):
    name = next((p for p in prompts if p != "good"), "good")
    if name == "raises": raise Strange("in\\ntwo lines")
    if name == "nan": return [1.0, float("nan")]
    if name == "infinite": return [float("inf")] * len(queries)
    if name == "short": return [1.0]
    if name == "sleeps": time.sleep(1000)
    if name == "deaf": time.sleep(1000)
    if name == "prints": print("x" * 10_000_000)
    if name == "exits": sys.exit(3)
    if name == "leaves": os._exit(4)
    if name == "segfault": ctypes.string_at(0)
    if name == "reads": input()
    if name == "forks": os.fork()
    if name == "starts":
        started = subprocess.Popen(["sleep", "1000"])
        return {"rewards": [started.pid, os.getpid()]}
    if name == "async":
        async def later(): await asyncio.sleep(0.01); return [7.0, 8.0]
        return later()
    scores = [place % 2 for place in range(len(queries))]
    return {"rewards": [len(q) for q in queries], "scores": scores, "extra_logs": {"label": [float(x) for x in labels]}}
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("reward") / "mine.py"
    path.write_text(FILE)
    return str(path)


@pytest.fixture(scope="module")
def function(file: str) -> IsolatedFunction:
    """One for all: after each failure the next call must work."""
    return IsolatedFunction(file, timeout_s=60)


def ask(function: IsolatedFunction, name: str = "good"):
    return function(["a", "bbb"], [name, name], ["5", "6"])


def check_good(function: IsolatedFunction) -> None:
    answer = ask(function)
    assert (answer.rewards, answer.scores) == ([1.0, 3.0], [0.0, 1.0])
    assert (answer.extra_logs, answer.failures) == ({"label": [5.0, 6.0]}, {})


def test_its_answer_comes_through(function: IsolatedFunction) -> None:
    check_good(function)
    check_good(function)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("raises", "it raised Strange: in two lines"),
        ("nan", r"rewards\[1\] is nan"),
        ("infinite", r"rewards\[0\] is inf"),
        ("short", "rewards has 1 entries for 2 samples"),
        ("exits", r"it called exit\(3\)"),
        ("leaves", "ended its process with code 4"),
        ("segfault", "was ended by SIGSEGV"),
        ("reads", "it raised EOFError"),
    ],
)
def test_what_it_does_wrong_is_named(function: IsolatedFunction, name: str, sentence: str) -> None:
    with pytest.raises(RewardFailed, match=f"reward_func of .*/mine.py.*{sentence}"):
        ask(function, name)
    check_good(function)


def test_its_own_lines_are_shown_once_and_ours_never(file: str, capfd: pytest.CaptureFixture[str]) -> None:
    function = IsolatedFunction(file, 60)
    for name in ("raises", "raises", "short"):
        with pytest.raises(RewardFailed):
            ask(function, name)
    shown = capfd.readouterr().err
    assert shown.count("Traceback") == shown.count("mine.py") == 1
    assert "reward_child.py" not in shown and "rewards.py" not in shown


def test_what_it_prints_is_no_part_of_its_answer(file: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert ask(IsolatedFunction(file, 60), "prints").rewards == [1.0, 3.0]
    printed = capfd.readouterr().out
    assert len(printed) == 10_000_001 or pytest.fail(f"{len(printed)} characters")


def test_a_copy_of_it_says_nothing(function: IsolatedFunction) -> None:
    for _ in range(3):
        assert ask(function, "forks").rewards == [1.0, 3.0]
        check_good(function)


@pytest.mark.parametrize(
    "fault", ["raises", "nan", "infinite", "sleeps", "exits", "leaves", "segfault", "prints", "forks"]
)
def test_a_fault_costs_its_own_sample_alone(function: IsolatedFunction, fault: str) -> None:
    """What prints or forks and then answers is no failure at all."""

    def limited(queries: Texts, prompts: Texts, labels: Texts) -> Rewards:
        function.timeout_s = 0.5 if "sleeps" in prompts else 60
        return function(queries, prompts, labels)

    prompts = ["good", fault, "good", "good"]
    answer = call_reward_function(dropping(limited, 60), ["a", "bb", "ccc", "dddd"], prompts, ["1"] * 4)
    failed = [] if fault in ("prints", "forks") else [1]
    assert list(answer.failures) == failed
    assert [math.nan if math.isnan(r) else r for r in answer.rewards] == [1, math.nan if failed else 2, 3, 4]
    assert [math.isnan(score) for score in answer.scores] == [False, bool(failed), False, False]


def test_an_async_function_is_waited_for(function: IsolatedFunction) -> None:
    assert ask(function, "async").rewards == [7.0, 8.0]


def test_the_time_limit(file: str) -> None:
    function = IsolatedFunction(file, timeout_s=20)
    function.timeout_s = 0.3
    child = function.child
    assert child is not None
    with pytest.raises(RewardFailed, match=r"mine.py did not answer within --reward_timeout 0.3 s"):
        ask(function, "sleeps")
    assert child.process.returncode == -signal.SIGKILL
    function.timeout_s = 20
    check_good(function)


def test_more_text_than_it_reads_is_no_wait_for_ever(file: str) -> None:
    """The limit holds for handing over too: the process is stopped and takes nothing."""
    function = IsolatedFunction(file, timeout_s=20)
    assert function.child is not None
    os.kill(function.child.process.pid, signal.SIGSTOP)
    function.timeout_s = 0.3
    with pytest.raises(RewardFailed, match="did not answer within"):
        function(["x" * 10_000_000], ["q"], ["5"])


def test_what_it_started_ends_with_it(file: str) -> None:
    function = IsolatedFunction(file, timeout_s=20)
    started, process = (int(number) for number in ask(function, "starts").rewards)
    assert alive(started) and alive(process)
    del function
    assert ends(started) and ends(process)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_us(file: str, sent: signal.Signals) -> None:
    program = (
        "import time; from openrlhf.rollout.isolated import IsolatedFunction as F\n"
        f"f = F({file!r}, 30); print(*map(int, f(['a', 'b'], ['starts'] * 2, ['5', '6']).rewards), flush=True)\n"
        "f(['a'], ['sleeps'], ['5'])"
    )
    us = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert us.stdout is not None
    theirs = [int(number) for number in us.stdout.readline().split()]
    us.send_signal(sent)
    us.wait(timeout=120)
    assert all(map(ends, theirs))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "no such Python file"),
        ("x = 1", r"the file must define reward_func\(queries, prompts, labels\)$"),
        ("def reward(q): ...\ndef score(q): ...", "the file must define reward_func.*, not reward and score$"),
        ("import no_such_library", "it raised ModuleNotFoundError: No module named 'no_such_library'"),
        ("reward_func = (", "it raised SyntaxError"),
        ("import os; os._exit(9)", "ended its process with code 9"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_named_at_once(tmp_path: Path, text: str | None, sentence: str) -> None:
    path = tmp_path / "bad.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RewardFailed, match=f"bad.py.*{sentence}"):
        IsolatedFunction(str(path), 30)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def ends(pid: int) -> bool:
    until = time.monotonic() + 20
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not alive(pid)
