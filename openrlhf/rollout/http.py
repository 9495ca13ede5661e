"""Rewards from HTTP servers: POST ``{"query", "prompts", "labels"}`` → ``{"rewards", "scores", "extra_logs"}``.

A server is asked again, after longer and longer pauses, while it cannot be reached, is busy (429) or in trouble
(5xx), until the time for a request is over, or nobody has listened for ``GONE_S``. What it answers is checked entry by
entry; nothing is taken for 0.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import math
import random
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx2

from openrlhf.rollout.rewards import RewardFailed, RewardFunction, Rewards, Texts, failed, joined

MAX_ANSWER = 2**20  # bytes; as Python's objects the worst of them are 25 times as large
AT_ONCE = 8  # requests to one server
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0  # seconds; the pause doubles in between
GONE_S = 25.0  # a server that takes no connection for so long is gone: the run ends soon, and can be started again
LOOK_S = 5.0  # meanwhile it is asked at least so often
# Where cloud machines find their own secrets; link-local addresses, where most do, are refused as such.
METADATA = {ipaddress.ip_address("fd00:ec2::254"), ipaddress.ip_address("100.100.100.200")}
RETRIED = {408, 429, 500, 502, 503, 504}

log = logging.getLogger(__name__)
jitter = random.SystemRandom()  # leaves the seeded generators of the run alone


class Again(Exception):
    """No answer, but there may be one later; ``after`` seconds if the server said so."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


def http_rewards(urls: Sequence[str], chunk: int, timeout_s: float, drop: bool, token: str | None) -> RewardFunction:
    """A reward function that asks servers for ``chunk`` samples at a time.

    Several servers share a batch: each gets a run of consecutive samples, and the order is kept. ``timeout_s`` is for
    one request with all its repetitions. It raises RewardFailed, or with ``drop`` says which samples failed; a server
    that did not answer in time is asked no more for this batch. ``token`` is sent as bearer token. Proxies of the
    environment are not used and redirects not followed.
    """
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    if token:
        headers["Authorization"] = f"Bearer {token}"

    def ask(queries: Texts, prompts: Texts, labels: Texts) -> Rewards:
        asked = {"query": queries, "prompts": prompts, "labels": labels}
        return asyncio.run(_ask_all(urls, asked, chunk, timeout_s, drop, headers))

    return ask


async def _ask_all(
    urls: Sequence[str], asked: Mapping[str, Texts], chunk: int, timeout_s: float, drop: bool, headers: dict[str, str]
) -> Rewards:
    slots = {url: asyncio.Semaphore(AT_ONCE) for url in urls}
    silent: dict[str, str] = {}  # the servers that did not answer in time, and what is to be said of them
    unlimited = httpx2.Limits(max_connections=None)  # the slots are the limit

    async def part(client: httpx2.AsyncClient, url: str, rows: slice) -> Rewards:
        body = {name: texts[rows] for name, texts in asked.items()}
        count = len(body["query"])
        async with slots[url]:
            try:
                return read_answer(url, await _ask_until(client, url, body, timeout_s, silent), count)
            except RewardFailed as failure:
                if not drop:
                    raise
                return failed(count, str(failure))

    async with httpx2.AsyncClient(headers=headers, trust_env=False, timeout=timeout_s, limits=unlimited) as client:
        parts = _parts(urls, len(asked["query"]), chunk)
        return joined(await asyncio.gather(*(part(client, url, rows) for url, rows in parts)))


def _parts(urls: Sequence[str], count: int, chunk: int) -> Iterator[tuple[str, slice]]:
    for number, url in enumerate(urls):
        begin, end = (round(place * count / len(urls)) for place in (number, number + 1))
        for start in range(begin, end, chunk):
            yield url, slice(start, min(start + chunk, end))


async def _ask_until(
    client: httpx2.AsyncClient, url: str, body: Mapping[str, Texts], timeout_s: float, silent: dict[str, str]
) -> bytes:
    began, pause, reason = time.monotonic(), FIRST_PAUSE, ""
    connected = began
    while url not in silent:
        try:
            async with asyncio.timeout(began + timeout_s - time.monotonic()):
                return await _post(client, url, body)
        except (Again, httpx2.TransportError, TimeoutError) as error:
            nobody = isinstance(error, httpx2.ConnectError)
            after = error.after if isinstance(error, Again) else 0.0
            if not (reason and isinstance(error, TimeoutError)):  # what it said before says more than its silence
                reason = _reason(error)
        if not nobody:
            connected = time.monotonic()
        wait = max(pause * jitter.uniform(0.5, 1.0), min(after, LONGEST_PAUSE))
        wait = min(wait, LOOK_S) if nobody else wait
        if time.monotonic() + wait > min(began + timeout_s, connected + GONE_S if nobody else math.inf):
            spent = min(timeout_s, GONE_S) if nobody else timeout_s
            silent[url] = f"--remote_rm_url {url} gave no rewards within {spent:g} s: {reason}"
            break
        log.warning("%s: %s; asking again in %.1f s", url, reason, wait)
        await asyncio.sleep(wait)
        pause = min(2 * pause, LONGEST_PAUSE)
    raise RewardFailed(silent[url])


def _reason(error: Exception) -> str:
    return "no answer" if isinstance(error, TimeoutError) else str(error) or type(error).__name__


async def _post(client: httpx2.AsyncClient, url: str, body: Mapping[str, Texts]) -> bytes:
    """The body of a good answer. Raises Again, an error of the connection, or RewardFailed."""
    place = urlsplit(url)
    check_addresses(url, await _addresses(place.hostname or "", place.port))
    async with client.stream("POST", url, content=json.dumps(body).encode()) as response:
        # The name may have been resolved anew for the connection.
        check_addresses(url, [response.extensions["network_stream"].get_extra_info("server_addr")[0]])
        status = response.status_code
        if response.is_redirect:
            target = response.headers.get("location", "nowhere")
            raise RewardFailed(f"--remote_rm_url {url} sends us on to {target!r:.200}: give the address that answers")
        if (encoding := response.headers.get("content-encoding", "identity")) != "identity":
            raise RewardFailed(f"--remote_rm_url {url} answers in the encoding {encoding!r}, which was not asked for")
        content = await _read(url, response)
        says = content[:200].decode(errors="replace")
        if status in RETRIED:
            after = response.headers.get("retry-after", "")
            raise Again(f"status {status}, {says!r}", float(after) if after.isdecimal() else 0.0)
        if status != 200:
            raise RewardFailed(f"--remote_rm_url {url} answers with status {status}: {says!r}")
        return content


async def _read(url: str, response: httpx2.Response) -> bytes:
    content = bytearray()
    async for part in response.aiter_raw():
        content += part
        if len(content) > MAX_ANSWER:
            raise RewardFailed(f"--remote_rm_url {url} answers with more than {MAX_ANSWER} bytes")
    return bytes(content)


async def _addresses(host: str, port: int | None) -> list[str]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Again(f"{host} is not found ({error.strerror})") from error
    return [str(address[4][0]) for address in found]


def check_addresses(url: str, addresses: Sequence[str]) -> None:
    """Raises RewardFailed when one of them is no place for a reward server."""
    for text in addresses:
        address = ipaddress.ip_address(text.partition("%")[0])
        inner = (address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None) or address
        if inner.is_link_local or inner.is_multicast or inner in METADATA:
            raise RewardFailed(f"--remote_rm_url {url} leads to {text}, an address for metadata and not for rewards")


def read_answer(url: str, content: bytes, count: int) -> Rewards:
    """The rewards of ``count`` samples. Raises RewardFailed naming the address, the field and the value."""
    try:
        answer = json.loads(content, parse_constant=_refuse_constant, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RewardFailed(f"--remote_rm_url {url} answers {content[:80]!r}, which is not JSON: {reason}") from None
    if not isinstance(answer, dict) or "rewards" not in answer:
        raise RewardFailed(f'--remote_rm_url {url} answers {answer!r:.80}; it must be {{"rewards": [number, ...]}}')
    rewards = _numbers(url, "rewards", answer["rewards"], count)
    scores = rewards if answer.get("scores") is None else _numbers(url, "scores", answer["scores"], count)
    logs = answer.get("extra_logs") or {}
    if not isinstance(logs, dict):
        raise RewardFailed(f"--remote_rm_url {url}: extra_logs is {logs!r:.80}, not an object of lists")
    return Rewards(rewards, scores, {name: _numbers(url, f"extra_logs.{name}", v, count) for name, v in logs.items()})


def _numbers(url: str, name: str, values: Any, count: int) -> list[float]:
    if not isinstance(values, list):
        raise RewardFailed(f"--remote_rm_url {url}: {name} is {values!r:.80}, not a list of {count} numbers")
    if len(values) != count:
        raise RewardFailed(f"--remote_rm_url {url}: {name} has {len(values)} entries for {count} samples")
    return [_number(url, f"{name}[{i}]", value) for i, value in enumerate(values)]


def _number(url: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1e30 < value < 1e30:
        raise RewardFailed(f"--remote_rm_url {url}: {name} is {value!r:.80}, not a finite number")
    return float(value)


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a name stands twice in an object")
    return found
