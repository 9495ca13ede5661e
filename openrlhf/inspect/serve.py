"""The pages over HTTP, for a browser on this machine. They are made anew at each request, so a run may go on."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from openrlhf.inspect.pages import Pages

HOST = "127.0.0.1"
# A page of another site that has its own name point here is not answered (DNS rebinding).
NAMES = [HOST, "localhost"]
NOT_THERE = (ValueError, OverflowError, OSError)  # numbers beyond those of steps and prompts, too


def view_app(pages: Pages) -> Starlette:
    """The ASGI application. It only reads."""

    def overview(request: Request) -> Response:
        return HTMLResponse(pages.overview())

    def state(request: Request) -> Response:
        return JSONResponse(pages.state())

    def step(request: Request) -> Response:
        return HTMLResponse(pages.step(*request.path_params.values()))

    def sample(request: Request) -> Response:
        return HTMLResponse(pages.sample(*request.path_params.values()))

    def prompt(request: Request) -> Response:
        return HTMLResponse(pages.prompt(*request.path_params.values()))

    def missing(request: Request, error: Exception) -> Response:
        return PlainTextResponse(str(error), 404)

    routes = [
        Route("/", overview),
        Route("/state", state),
        Route("/step/{run:int}/{step:int}", step),
        Route("/sample/{run:int}/{step:int}/{row:int}", sample),
        Route("/prompt/{prompt:int}", prompt),
    ]
    guard = Middleware(TrustedHostMiddleware, allowed_hosts=NAMES)
    return Starlette(routes=routes, middleware=[guard], exception_handlers=dict.fromkeys(NOT_THERE, missing))
