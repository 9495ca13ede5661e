"""Reward servers of this process that answer byte by byte what a test says."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

HEAD = b"HTTP/1.1 200 OK\r\n"
Answer = Callable[[socket.socket, dict[str, Any]], None]


class Server:
    """Answers the n-th request with ``answers[n]``, and the last one from then on."""

    def __init__(self, answers: Sequence[Answer], later_s: float) -> None:
        self.answers = list(answers)
        self.heads: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))  # connections are refused until it listens
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/get_reward"
        self.timer = threading.Timer(later_s, self._start)
        self._start() if later_s == 0 else self.timer.start()

    def _start(self) -> None:
        self.socket.listen(128)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            try:
                head = ""
                while (line := stream.readline().decode()) not in ("\r\n", ""):
                    head += line
                length = int(head.lower().partition("content-length: ")[2].split()[0])
                body = json.loads(stream.read(length))
                with self.lock:
                    self.heads.append(head)
                    self.asked.append(body)
                    answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                answer(connection, body)
            except (OSError, IndexError):
                pass  # the client is gone


@contextmanager
def serving(*answers: Answer, later_s: float = 0) -> Iterator[Server]:
    server = Server(answers, later_s)
    try:
        yield server
    finally:
        server.timer.cancel()
        server.socket.close()


@contextmanager
def nobody() -> Iterator[str]:
    """An address that refuses connections, and that nobody else takes meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/get_reward"


def says(body: bytes | str, status: str = "200 OK", head: str = "") -> Answer:
    content = body if isinstance(body, bytes) else body.encode()

    def answer(connection: socket.socket, asked: dict[str, Any]) -> None:
        connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\n{head}\r\n".encode() + content)

    return answer


def lengths(connection: socket.socket, asked: dict[str, Any]) -> None:
    rewards = [len(query) for query in asked["query"]]
    body = {
        "rewards": rewards,
        "scores": [0.5] * len(rewards),
        "extra_logs": {"label": [float(x) for x in asked["labels"]]},
    }
    says(json.dumps(body))(connection, asked)


def slowly(content: bytes) -> Answer:
    def answer(connection: socket.socket, asked: dict[str, Any]) -> None:
        for byte in content:
            connection.sendall(bytes([byte]))
            time.sleep(0.02)

    return answer


def never(connection: socket.socket, asked: dict[str, Any]) -> None:
    connection.settimeout(60)
    connection.recv(1)


def cut_off(connection: socket.socket, asked: dict[str, Any]) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{")
