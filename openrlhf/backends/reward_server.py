"""A reward model over HTTP: ``POST /get_reward`` and ``GET /health``.

The body is ``{"query": [text, …]}``, prompt and response with their special tokens; ``prompts`` and ``labels`` may be
there too and are not read. The answer is ``{"rewards": […], "scores": […], "extra_logs": {"cut": […]}}``, a number a
query each, where ``cut`` is 1 for a query that was longer than ``--max_len``. Errors are ``{"error": sentence}``.
Nothing of a body is logged.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import math
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anyio
import uvicorn
from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

MAX_BODY = 8 * 2**20  # bytes
MAX_QUERIES = 4096
BODY_SECONDS = 30.0  # for a client to send its body
WAITING = 64  # connections at once; more are told to come back (503)


@dataclass(frozen=True)
class Scored:
    """One entry a query."""

    rewards: list[float]
    cut: list[bool]  # longer than the model may read


Scorer = Callable[[list[str]], Scored]


class Refused(Exception):
    """A request that cannot be answered, with its HTTP status."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def reward_app(score: Scorer, token: str | None = None) -> Starlette:
    """The ASGI application. ``score`` is called in a thread, never twice at once."""
    limiter: list[CapacityLimiter] = []  # made by the first request: it belongs to the event loop

    async def get_reward(request: Request) -> Response:
        try:
            check_token(request.headers.get("authorization", ""), token)
            queries = read_queries(await read_body(request))
            limiter[:] = limiter or [CapacityLimiter(1)]
            scored = await to_thread.run_sync(score, queries, limiter=limiter[0])
            return answer(scored)
        except Refused as refusal:
            return JSONResponse({"error": str(refusal)}, refusal.status)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    return Starlette(routes=[Route("/get_reward", get_reward, methods=["POST"]), Route("/health", health)])


def check_token(header: str, token: str | None) -> None:
    """Raises Refused when ``header`` is not the bearer token."""
    if token is not None and not hmac.compare_digest(header.encode(), f"Bearer {token}".encode()):
        raise Refused(401, "this server needs a token: send the header 'Authorization: Bearer <token>'")


async def read_body(request: Request) -> bytes:
    """Raises Refused for a body over MAX_BODY, which is read no further, or one that takes too long."""
    body = bytearray()
    try:
        with anyio.fail_after(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > MAX_BODY:
                    raise Refused(413, f"the body is larger than {MAX_BODY} bytes; send fewer queries at once")
    except TimeoutError:
        raise Refused(408, f"the body did not arrive within {BODY_SECONDS:.0f} s") from None
    return bytes(body)


def read_queries(body: bytes) -> list[str]:
    """Raises Refused, naming what is wrong."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Refused(400, f"the body is not JSON: {reason}") from None
    if not isinstance(content, dict) or not isinstance(content.get("query"), list):
        raise Refused(422, 'the body must be {"query": [text, ...]}')
    queries = content["query"]
    if len(queries) > MAX_QUERIES:
        raise Refused(413, f"{len(queries)} queries; at most {MAX_QUERIES} at once")
    for i, query in enumerate(queries):
        if not isinstance(query, str):
            raise Refused(422, f"query[{i}] is {kind(query)}, not text")
        if any("\ud800" <= c <= "\udfff" for c in query):
            raise Refused(422, f"query[{i}] holds half of a surrogate pair, which is no text")
    return queries


def kind(value: Any) -> str:
    """What JSON calls the type of ``value``."""
    names = {bool: "a truth value", int: "a number", float: "a number", dict: "an object", list: "a list"}
    return names.get(type(value), "null")


def answer(scored: Scored) -> Response:
    for i, reward in enumerate(scored.rewards):
        if not math.isfinite(reward):
            return JSONResponse({"error": f"the reward model gives {reward} for query[{i}]"}, 500)
    cut = [float(was) for was in scored.cut]
    return JSONResponse({"rewards": scored.rewards, "scores": scored.rewards, "extra_logs": {"cut": cut}})


def bind(host: str, port: int) -> socket.socket:
    """A bound socket, which does not listen yet. Raises ValueError when the address cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, UnicodeError) as error:  # the second for a name that cannot be one
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(
            f"--host {host} --port {port} cannot be listened on ({reason}): choose another port, or 0 for a free one"
        ) from error
    return bound


def serve(app: Starlette, bound: socket.socket) -> None:
    """Answer requests until SIGTERM or SIGINT; those that run are finished first, for 10 s at most."""
    settings = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        limit_concurrency=WAITING,
        timeout_graceful_shutdown=10,
    )
    asyncio.run(uvicorn.Server(settings).serve(sockets=[bound]))
