"""Rewards over HTTP against servers of this process that answer byte by byte what the test says."""

from __future__ import annotations

import gzip
import json
import math
import socket
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openrlhf.rollout import http
from openrlhf.rollout.http import check_addresses, http_rewards, read_answer
from openrlhf.rollout.rewards import RewardFailed, Rewards
from tests.rollout.server import HEAD, Answer, cut_off, lengths, never, nobody, says, serving, slowly

URL = "http://127.0.0.1:9/get_reward"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(http, "LONGEST_PAUSE", 0.1)


def ask(urls: list[str], count: int = 2, timeout_s: float = 30, drop: bool = False, chunk: int = 8) -> Rewards:
    queries = ["x" * n for n in range(count)]
    labels = [str(n) for n in range(count)]
    return http_rewards(urls, chunk, timeout_s, drop, token=None)(queries, ["p"] * count, labels)


def test_servers_share_a_batch_in_order() -> None:
    with serving(lengths) as one, serving(lengths) as two:
        answer = ask([one.url, two.url], count=11, chunk=2)
        assert answer.rewards == [float(n) for n in range(11)] == answer.extra_logs["label"]
        assert answer.scores == [0.5] * 11
        assert sorted(len(a["query"][0]) for a in one.asked) == [0, 2, 4]
        assert sorted(len(a["query"][0]) for a in two.asked) == [6, 8, 10]
        assert all(a.keys() == {"query", "prompts", "labels"} for a in one.asked)


def test_any_text_arrives() -> None:
    with serving(lengths) as server:
        texts = ['é\0\n"<|im_end|>', "\ud800 half", "𐍈"]
        http_rewards([server.url], 8, 30, False, None)(texts, texts, ["1", "2", "3"])
        assert server.asked[0]["query"] == server.asked[0]["prompts"] == texts


def test_a_token_is_sent() -> None:
    with serving(lengths) as server:
        http_rewards([server.url], 8, 30, False, "secret")(["a"], ["a"], ["1"])
        ask([server.url])
        assert "authorization: bearer secret" in server.heads[0].lower()
        assert "authorization" not in server.heads[1].lower()


def hang_up(connection: socket.socket, asked: dict[str, Any]) -> None: ...


@pytest.mark.parametrize(
    "trouble",
    [
        says("busy", "503 Service Unavailable"),
        says("", "429 Too Many Requests", "Retry-After: 1\r\n"),
        says("", "503 Service Unavailable", "Retry-After: Thu, 01 Jan 2099 00:00:00 GMT\r\n"),
        says("oops", "500 Internal Server Error"),
        says("", "504 Gateway Timeout"),
        cut_off,
        hang_up,
        says("", "9999 what"),
        slowly(b""),
    ],
    ids=range(9),
)
def test_what_passes_is_asked_again(trouble: Answer) -> None:
    with serving(trouble, trouble, lengths) as server:
        assert ask([server.url]).rewards == [0.0, 1.0]
        assert len(server.asked) == 3


def test_a_server_that_starts_later_is_found() -> None:
    with serving(lengths, later_s=0.5) as server:
        assert ask([server.url]).rewards == [0.0, 1.0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (says("busy", "503 Service Unavailable"), "status 503, 'busy'"),
        (never, "no answer"),
        (slowly(HEAD + b"X: y\r\n" * 100), "no answer"),
        (slowly(HEAD + b"Content-Length: 999\r\n\r\n" + b" " * 999), "no answer"),
    ],
    ids=["busy", "silent", "slow head", "slow body"],
)
@pytest.mark.parametrize("drop", [False, True])
def test_what_does_not_pass_ends_in_time(trouble: Answer, reason: str, drop: bool) -> None:
    sentence = r"--remote_rm_url {} gave no rewards within 2 s: {}"
    with serving(trouble) as server:
        expected = sentence.format(server.url, reason)
        if not drop:
            with pytest.raises(RewardFailed, match=expected):
                ask([server.url], timeout_s=2.0)
            return
        with serving(lengths) as good:
            answer = ask([server.url, good.url], count=60, timeout_s=2.0, drop=True, chunk=1)
        assert answer.failures.keys() == set(range(30))
        assert all(f"{server.url} gave no rewards within 2 s: " in why for why in answer.failures.values())
        assert all(map(math.isnan, answer.rewards[:30])) and answer.rewards[30:] == [float(n) for n in range(30, 60)]
        assert len({len(a["query"][0]) for a in server.asked}) <= http.AT_ONCE  # the rest was not asked for


def test_nobody_there() -> None:
    with nobody() as url, pytest.raises(RewardFailed, match=f"{url} gave no rewards within 0.3 s: .*"):
        ask([url], timeout_s=0.3)


def test_nobody_for_long_is_the_end_before_the_time_for_a_request_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "GONE_S", 0.3)
    with nobody() as url, pytest.raises(RewardFailed, match=f"{url} gave no rewards within 0.3 s: .*connection"):
        ask([url], timeout_s=60.0)


def test_a_server_that_is_busy_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "GONE_S", 0.0)
    with serving(*[says("busy", "503 Service Unavailable")] * 3, lengths) as server:
        assert ask([server.url], timeout_s=60.0).failures == {}


def test_an_unknown_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: Any, **more: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(RewardFailed, match=r"http://nowhere/ gave no rewards .*nowhere is not found .Name or service"):
        ask(["http://nowhere/"], timeout_s=2.0)


@pytest.mark.parametrize(
    ("trouble", "sentence"),
    [
        (says("no such path", "404 Not Found"), "answers with status 404: 'no such path'"),
        (says("", "204 No Content"), "answers with status 204"),
        (says('{"error": "token"}', "401 Unauthorized"), "answers with status 401: .*token"),
        (says("", "307 Temporary Redirect", "Location: http://169.254.169.254/\r\n"), "sends us on to 'http://169.254"),
        (says("", "302 Found", "Location: /other\r\n"), "sends us on to '/other': give the address that answers"),
        (
            says(gzip.compress(b"[]"), head="Content-Encoding: gzip\r\n"),
            "answers in the encoding 'gzip', which was not asked",
        ),
        (says("<html>hello</html>"), "answers b'<html>hello</html>', which is not JSON"),
        (says(b"\xff\xfe{"), "answers .* which is not JSON"),
    ],
    ids=range(8),
)
def test_what_is_wrong_is_not_asked_again(trouble: Answer, sentence: str) -> None:
    with serving(trouble, lengths) as server:
        with pytest.raises(RewardFailed, match=f"--remote_rm_url {server.url} {sentence}"):
            ask([server.url])
        assert len(server.asked) == 1


def test_an_answer_that_is_too_large_is_read_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_ANSWER", 100_000)
    sent = []

    def endless(connection: socket.socket, asked: dict[str, Any]) -> None:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
            sent.append(65536)

    with serving(endless) as server, pytest.raises(RewardFailed, match="answers with more than 100000 bytes"):
        ask([server.url])
    assert sum(sent) < 50_000_000


GOOD = '{"rewards": [1, 2.5], "scores": [0, 1], "extra_logs": {"words": [3, 4]}}'


@pytest.mark.parametrize(
    "body", [GOOD, '{"rewards": [1, 2.5]}', '{"rewards": [1, 2.5], "scores": null, "extra_logs": null, "more": 1}']
)
def test_good_answers(body: str) -> None:
    answer = read_answer(URL, body.encode(), 2)
    assert answer.rewards == [1.0, 2.5]
    assert answer.scores == ([0.0, 1.0] if body == GOOD else [1.0, 2.5])
    assert answer.extra_logs == ({"words": [3.0, 4.0]} if body == GOOD else {})


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("", "which is not JSON: Expecting value"),
        ('{"rewards": [1, 2', "which is not JSON"),
        ('{"rewards": [1, 2]} {"rewards": [1, 2]}', "which is not JSON: Extra data"),
        ('{"rewards": [NaN, 1]}', "NaN is no number of JSON"),
        ('{"rewards": [1, Infinity]}', "Infinity is no number of JSON"),
        ('{"rewards": [1, -Infinity]}', "-Infinity is no number of JSON"),
        ('{"rewards": [1, 2], "rewards": [3, 4]}', "a name stands twice"),
        ('{"rewards": [1, ' + "9" * 5000 + "]}", "which is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("null", r"answers None; it must be {\"rewards\": \[number, ...\]}"),
        ("[1, 2]", r"answers \[1, 2\]; it must be"),
        ("3", "answers 3; it must be"),
        ('"text"', "answers 'text'; it must be"),
        ("{}", "answers {}; it must be"),
        ('{"reward": [1, 2]}', "it must be"),
        ('{"rewards": null}', "rewards is None, not a list of 2 numbers"),
        ('{"rewards": 1}', "rewards is 1, not a list"),
        ('{"rewards": "12"}', "rewards is '12', not a list"),
        ('{"rewards": {"0": 1, "1": 2}}', "rewards is {.*}, not a list"),
        ('{"rewards": []}', "rewards has 0 entries for 2 samples"),
        ('{"rewards": [1]}', "rewards has 1 entries for 2 samples"),
        ('{"rewards": [1, 2, 3]}', "rewards has 3 entries for 2 samples"),
        ('{"rewards": [1, null]}', r"rewards\[1\] is None, not a finite number"),
        ('{"rewards": ["1", 2]}', r"rewards\[0\] is '1', not a finite number"),
        ('{"rewards": [true, 2]}', r"rewards\[0\] is True, not a finite number"),
        ('{"rewards": [[1], [2]]}', r"rewards\[0\] is \[1\], not a finite number"),
        ('{"rewards": [1, 1e999]}', r"rewards\[1\] is inf, not a finite number"),
        ('{"rewards": [1, -1e999]}', r"rewards\[1\] is -inf, not a finite number"),
        ('{"rewards": [1, {"a": 1}]}', r"rewards\[1\] is {'a': 1}, not a finite number"),
        ('{"rewards": [1, 2], "scores": [1]}', "scores has 1 entries for 2 samples"),
        ('{"rewards": [1, 2], "scores": 0}', "scores is 0, not a list"),
        ('{"rewards": [1, 2], "extra_logs": [1, 2]}', r"extra_logs is \[1, 2\], not an object"),
        ('{"rewards": [1, 2], "extra_logs": {"a": 1}}', "extra_logs.a is 1, not a list"),
        ('{"rewards": [1, 2], "extra_logs": {"a": [1, "x"]}}', r"extra_logs.a\[1\] is 'x', not a finite number"),
    ],
    ids=range(34),
)
def test_a_wrong_answer_names_the_address_the_field_and_the_value(body: str, sentence: str) -> None:
    with pytest.raises(RewardFailed, match=f"--remote_rm_url {URL}.*{sentence}") as failure:
        read_answer(URL, body.encode(), 2)
    assert len(str(failure.value)) < 400


@pytest.mark.parametrize(
    "address",
    [
        *("169.254.169.254", "169.254.1.1", "fe80::1", "fe80::1%eth0", "::ffff:169.254.169.254", "fd00:ec2::254"),
        *("100.100.100.200", "224.0.0.1", "ff02::1"),
    ],
)
def test_addresses_for_metadata_are_refused(address: str) -> None:
    with pytest.raises(RewardFailed, match=f"leads to {address}, an address for metadata"):
        check_addresses(URL, ["127.0.0.1", address])


def test_addresses_of_servers_are_not() -> None:
    check_addresses(URL, ["127.0.0.1", "::1", "10.0.0.5", "192.168.1.1", "8.8.8.8", "2001:db8::1", "fd12::3"])


@pytest.mark.parametrize("host", ["169.254.169.254", "[::ffff:169.254.169.254]", "2852039166", "0xa9fea9fe"])
def test_no_way_of_writing_such_an_address_is_asked(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http.httpx2.AsyncClient, "stream", lambda *args, **more: pytest.fail("a request was made"))
    with pytest.raises(RewardFailed, match="an address for metadata"):
        ask([f"http://{host}/latest"], timeout_s=5)


def test_a_name_that_changes_its_address_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is resolved to a good address when it is checked, and to another one by the connection."""

    async def elsewhere(host: str, port: int | None) -> list[str]:
        return ["8.8.8.8"]

    monkeypatch.setattr(http, "_addresses", elsewhere)
    monkeypatch.setattr(http, "METADATA", {http.ipaddress.ip_address("127.0.0.1")})
    with serving(lengths) as server, pytest.raises(RewardFailed, match="leads to 127.0.0.1, an address for metadata"):
        ask([server.url])


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving(lengths) as server:
        assert ask([server.url]).rewards == [0.0, 1.0]


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
NAMES = st.sampled_from(["rewards", "scores", "extra_logs"])
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(max_size=3), inner, max_size=3)
)
TWO = st.lists(st.floats() | st.integers(), min_size=2, max_size=2)
ANSWERS = st.dictionaries(NAMES, TWO | st.dictionaries(st.text(max_size=3), TWO | JSON, max_size=2) | JSON, max_size=3)


@pytest.mark.slow
@settings(
    max_examples=200, deadline=None, database=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(content=st.binary(max_size=40) | (JSON | ANSWERS).map(lambda value: json.dumps(value).encode()))
def test_any_answer_is_finite_rewards_or_a_sentence(content: bytes) -> None:
    with suppress(RewardFailed):
        found = read_answer("http://127.0.0.1/get_reward", content, 2)
        for numbers in (found.rewards, found.scores, *found.extra_logs.values()):
            assert len(numbers) == 2 and all(map(math.isfinite, numbers))
