"""Runs whose reward server is in trouble, or gone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from openrlhf.cli.train_ppo_ray import main
from openrlhf.rollout import http
from tests.recipes.helpers import column, metrics, run, write_rows
from tests.rollout.server import HEAD, cut_off, lengths, nobody, says, serving, slowly


@pytest.fixture
def flags(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Three steps of four prompts, two samples at a time to the server."""
    monkeypatch.setattr(http, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(http, "LONGEST_PAUSE", 0.1)
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"input": f"say {i}:", "label": i} for i in range(4)])
    return {
        "local": True, "pretrain": tiny_folder, "prompt_data": prompts, "label_key": "label",
        "advantage_estimator": "rloo", "rollout_batch_size": 4, "n_samples_per_prompt": 4, "train_batch_size": 16,
        "micro_train_batch_size": 16, "micro_rollout_batch_size": 2, "generate_max_len": 6, "num_episodes": 3,
        "actor_learning_rate": 1e-2, "save_path": tmp_path / "out",
    }  # fmt: skip


@pytest.mark.slow
def test_troubles_that_pass_change_no_number(flags: dict[str, Any], tmp_path: Path) -> None:
    """Nobody listens, then it is busy, then it breaks off, then it answers byte by byte."""
    with serving(lengths) as server:
        run(main, flags | {"remote_rm_url": server.url})
    asked = sorted(str(body) for body in server.asked)
    busy = says("later", "503 Service Unavailable", "Retry-After: 1\r\n")

    def byte_by_byte(connection: Any, body: dict[str, Any]) -> None:
        slowly(answer_of(body))(connection, body)

    troubles = [busy] * 9 + [cut_off, says("", "502 Bad Gateway")] + [byte_by_byte] * 8 + [busy, cut_off]
    with serving(*troubles, lengths, later_s=1.0) as server:
        troubled = run(main, flags | {"remote_rm_url": server.url, "save_path": tmp_path / "troubled"})
    assert metrics(troubled) == metrics(flags["save_path"])
    assert len(server.asked) == len(asked) + 13
    assert sorted({str(body) for body in server.asked}) == asked
    weights = [(folder / "model.safetensors").read_bytes() for folder in (troubled, flags["save_path"])]
    assert weights[0] == weights[1]


def answer_of(body: dict[str, Any]) -> bytes:
    """The bytes that ``lengths`` sends."""
    sent = bytearray()

    class Sink:
        sendall = staticmethod(sent.extend)

    lengths(Sink(), body)  # type: ignore[arg-type]
    return bytes(sent)


@pytest.mark.slow
def test_without_one_of_two_servers_a_run_learns_from_the_others_samples(
    flags: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The first half of each batch is the absent server's."""
    flags |= {"on_reward_failure": "drop", "reward_timeout": 4, "num_episodes": 2}
    with nobody() as absent, serving(lengths) as server:
        folder = run(main, flags | {"remote_rm_url": f"{absent},{server.url}"})
        assert column(folder, "reward/invalid") == [0.5] * 2
        heard = [len(query) for body in server.asked for query in body["query"]]
        assert len(heard) == 16
        assert sum(column(folder, "reward")) / 2 == pytest.approx(sum(heard) / 16)
        with pytest.raises(SystemExit) as stop:
            run(main, flags | {"remote_rm_url": absent})
    assert stop.value.code == 2
    assert f"{absent} gave no rewards within 4 s" in capsys.readouterr().err


ASKS = """
import pathlib, sys
from openrlhf.rollout.http import http_rewards
def ask():
    return http_rewards([sys.argv[1]], 8, 60, True, None)(["a", "b"], ["a", "b"], ["1", "2"])
def peak():
    return int(pathlib.Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
assert not ask().failures
before = peak()
for _ in range(int(sys.argv[2])):
    assert ask().failures.keys() == {0, 1}
print(peak() - before)
"""


def endless(connection: Any, body: dict[str, Any]) -> None:
    connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    for _ in range(2**14):  # a gigabyte
        connection.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")


def test_no_answer_takes_much_memory() -> None:
    room = http.MAX_ANSWER - 100
    bodies = [
        '{"rewards": [' + "{}," * (room // 3) + "{}]}",
        '{"rewards": [' + "1," * (room // 2) + "1]}",
        '{"rewards": [0.1, "' + "\U0001f600" * (room // 4) + '"]}',
        "[" * room,
        '{"' + "a" * room + '": 1}',
    ]
    with serving(lengths, endless, *map(says, bodies)) as server:
        asked = subprocess.run(
            [sys.executable, "-c", ASKS, server.url, str(1 + len(bodies))],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    assert int(asked.stdout) < 64 * 1024  # KiB
