"""Processes that a run did not start, killed in the middle of a step: a reward server, and an agent's environment."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from openrlhf.cli.train_ppo_ray import main
from openrlhf.rollout import http
from openrlhf.training.checkpoint_files import verify
from tests.recipes.helpers import metrics, run, words, write_rows

# Its request with a number is its last.
SERVER = """
import json, os, signal, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

port, last = map(int, sys.argv[1:])
asked = 0

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        global asked
        asked += 1
        if asked == last:
            os.kill(os.getpid(), signal.SIGKILL)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = json.dumps({"rewards": [len(set(query)) / 20 for query in body["query"]]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

HTTPServer.allow_reuse_port = True
server = HTTPServer(("127.0.0.1", port), Handler)
print("there", flush=True)
server.serve_forever()
"""
# Asks a game in another process, which dies in the middle of the third rollout, once.
AGENT = """
import subprocess, sys, threading

GAME = '''
import os, signal, sys
from pathlib import Path
for number, line in enumerate(sys.stdin, start=1):
    if number == 10 and not Path({died!r}).exists():
        Path({died!r}).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    print(len(set(line)), flush=True)
'''
game = subprocess.Popen([sys.executable, "-c", GAME], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
turn = threading.Lock()

class AgentInstance:
    def reset(self, states):
        return {{"observation": states["observation"]}}

    def step(self, states):
        with turn:
            try:
                game.stdin.write(ascii(states["action_text"]) + "\\n")
                game.stdin.flush()
                answer = game.stdout.readline()
            except BrokenPipeError:
                answer = ""
        if not answer:
            raise ConnectionError("the game is gone")
        return {{"rewards": int(answer) / 20, "done": True}}
"""


@pytest.fixture
def flags(tiny_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """Four steps of four samples."""
    return {
        "local": True, "pretrain": tiny_folder, "advantage_estimator": "rloo", "init_kl_coef": 0,
        "prompt_data": write_rows(tmp_path / "p.jsonl", [{"input": f"say {i}"} for i in range(8)]),
        "rollout_batch_size": 2, "n_samples_per_prompt": 2, "train_batch_size": 4, "micro_train_batch_size": 4,
        "generate_max_len": 4, "save_steps": 100, "save_path": tmp_path / "out", "ckpt_path": tmp_path / "ckpt",
    }  # fmt: skip


@contextmanager
def serving(port: int, last: int) -> Iterator[None]:
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(port), str(last)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "there\n"
        yield
    finally:
        server.kill()
        server.wait(timeout=60)


def ends(flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The last line of a run that ends after step 2, with code 3 and its state saved."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "_exit", sys.exit)  # this is the process of the tests
        with pytest.raises(SystemExit) as stop:
            main(words(flags))
    assert stop.value.code == 3
    assert verify(flags["ckpt_path"] / "global_step2").step == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_killed_reward_server_ends_the_run_which_goes_on_when_there_is_one_again(
    flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(http, "GONE_S", 1.0)
    with socket.socket() as place:  # bound as long as the test takes, so the port stays ours; it does not listen
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
        flags["remote_rm_url"] = f"http://127.0.0.1:{port}/get_reward"
        with serving(port, last=3):
            said = ends(flags, monkeypatch, capsys)
        assert said.startswith("in the phase rollout after step 2: --remote_rm_url http://127.0.0.1:")
        assert said.endswith(f"goes on from {flags['ckpt_path'] / 'global_step2'}.")
        with serving(port, last=0):
            run(main, flags | {"load_checkpoint": True})
    assert [row["step"] for row in metrics(flags["save_path"])] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_killed_environment_ends_the_run_which_goes_on(
    flags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags["agent_func_path"] = tmp_path / "agent.py"
    flags["agent_func_path"].write_text(AGENT.format(died=str(tmp_path / "died")))
    said = ends(flags, monkeypatch, capsys)
    assert "it raised ConnectionError: the game is gone. The same command with --load_checkpoint goes on from " in said
    run(main, flags | {"load_checkpoint": True})
    assert [row["step"] for row in metrics(flags["save_path"])] == [1, 2, 3, 4]
