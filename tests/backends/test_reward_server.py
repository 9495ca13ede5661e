"""The reward server's protocol, in this process: what it answers, what it refuses, and that nothing breaks it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from openrlhf.backends import reward_server
from openrlhf.backends.reward_server import Scored, bind, reward_app


def lengths(queries: list[str]) -> Scored:
    return Scored([float(len(q)) for q in queries], [len(q) > 5 for q in queries])


CLIENT = TestClient(reward_app(lengths))


def ask(body: Any, client: TestClient = CLIENT, **headers: str) -> tuple[int, dict[str, Any]]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = client.post("/get_reward", content=content, headers=headers)
    return response.status_code, response.json()


def test_a_number_a_query_in_order() -> None:
    assert ask({"query": ["four", "1", "longer"], "prompts": ["a"] * 3, "labels": [None] * 3}) == (
        200,
        {"rewards": [4.0, 1.0, 6.0], "scores": [4.0, 1.0, 6.0], "extra_logs": {"cut": [0.0, 0.0, 1.0]}},
    )
    assert ask({"query": []})[1]["rewards"] == []


def test_health() -> None:
    assert CLIENT.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"", 400, "the body is not JSON: Expecting value"),
        (b'{"query": ["a"', 400, "the body is not JSON: "),
        (b'{"query": ["\xff"]}', 400, "the body is not JSON: "),
        (b"[" * 200_000, 400, "the body is not JSON: nested too deeply"),
        (b"<html></html>", 400, "the body is not JSON: "),
        ([], 422, 'the body must be {"query": [text, ...]}'),
        (None, 422, "the body must be "),
        ({"queries": ["a"]}, 422, "the body must be "),
        ({"query": "a"}, 422, "the body must be "),
        ({"query": {"0": "a"}}, 422, "the body must be "),
        ({"query": ["a", 3]}, 422, "query[1] is a number, not text"),
        ({"query": [True]}, 422, "query[0] is a truth value, not text"),
        ({"query": [["a"]]}, 422, "query[0] is a list, not text"),
        ({"query": ["a", "b", None]}, 422, "query[2] is null, not text"),
        ({"query": [{}]}, 422, "query[0] is an object, not text"),
        (b'{"query": [NaN]}', 422, "query[0] is a number, not text"),
        (b'{"query": ["a", "\\ud800"]}', 422, "query[1] holds half of a surrogate pair"),
        ({"query": ["a"] * 4097}, 413, "4097 queries; at most 4096 at once"),
    ],
    ids=range(18),
)
def test_a_wrong_body_is_named(body: Any, status: int, sentence: str) -> None:
    got, answer = ask(body)
    assert got == status
    assert answer["error"].startswith(sentence)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["query", "prompts", "x"]), inner),
    max_leaves=8,
)


@settings(deadline=None)
@given(body=st.binary() | JSON.map(lambda value: json.dumps(value).encode()) | st.lists(JSON).map(
    lambda queries: json.dumps({"query": queries}).encode()
))  # fmt: skip
def test_no_body_breaks_it(body: bytes) -> None:
    """Any body is answered or refused with a sentence; an exception would come out of the client."""
    status, answer = ask(body)
    assert status == 200 or (400 <= status < 500 and answer["error"])


def test_other_methods_and_paths_are_refused() -> None:
    assert [CLIENT.get("/get_reward").status_code, CLIENT.post("/").status_code] == [405, 404]


def test_a_body_that_is_too_large_is_read_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_server, "MAX_BODY", 1000)
    sent = []

    def parts():
        for _ in range(50):
            sent.append(400)
            yield b"x" * 400

    response = CLIENT.post("/get_reward", content=parts())
    assert (response.status_code, response.json()["error"][:36]) == (413, "the body is larger than 1000 bytes; ")
    assert ask({"query": ["a" * 900]})[0] == 200


def test_a_body_that_does_not_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_server, "BODY_SECONDS", 0.05)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/get_reward", "headers": [], "query_string": b""}
    asyncio.run(asyncio.wait_for(reward_app(lengths)(scope, receive, send), timeout=20))
    assert sent[0]["status"] == 408


@pytest.mark.parametrize(
    "sent", [None, "Bearer", "Bearer wrong", "Basic secret", "secret", "Bearer secret ", "bearer s"]
)
def test_without_the_token_nothing_is_answered(sent: str | None) -> None:
    client = TestClient(reward_app(lengths, token="secret"))
    status, answer = ask({"query": ["a"]}, client, **({} if sent is None else {"Authorization": sent}))
    assert (status, "needs a token" in answer["error"]) == (401, True)


def test_with_the_token() -> None:
    client = TestClient(reward_app(lengths, token="secret"))
    assert ask({"query": ["a"]}, client, Authorization="Bearer secret")[0] == 200


def test_the_model_is_asked_by_one_request_at_a_time() -> None:
    inside, most = [0], [0]
    meet = threading.Event()

    def slow(queries: list[str]) -> Scored:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        meet.wait(0.02)
        inside[0] -= 1
        return lengths(queries)

    with TestClient(reward_app(slow)) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: ask({"query": ["x" * n]}, client), range(8)))
    assert [answer["rewards"] for _, answer in answers] == [[float(n)] for n in range(8)]
    assert most == [1]


def test_a_broken_model_is_no_reward() -> None:
    client = TestClient(reward_app(lambda queries: Scored([1.0, float("nan")], [False, False])))
    assert ask({"query": ["a", "b"]}, client) == (500, {"error": "the reward model gives nan for query[1]"})


def test_a_taken_port_is_named() -> None:
    with bind("127.0.0.1", 0) as first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(ValueError, match=f"--host 127.0.0.1 --port {port} cannot be listened on .*in use"):
            bind("127.0.0.1", port)


def test_an_unknown_host_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: Any, **more: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ValueError, match="--host nowhere --port 0 cannot be listened on .Name or service not known."):
        bind("nowhere", 0)


def test_a_name_that_no_host_can_have_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="--host a+ --port 0 cannot be listened on .*too long"):
        bind("a" * 300, 0)
