"""Who may come in, and what a browser may do with what it gets: hosts, origins, rates, headers, errors."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from dapp.world import World
from maxgreen.chain.explain import ChainRefusedError
from maxgreen.errors import MaxgreenError, Retryable, UsageError

_LOG: Final = logging.getLogger(__name__)
_ADDRESSES: Final = 10_000  # whose rate is remembered
_LARGEST: Final = 256 * 1024  # of a request's body, bytes
_OPEN: Final = ("/health/", "/static/")
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
        "connect-src 'self'; manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with none, a browser sends forms with the origin null
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), geolocation=(), microphone=()",
}


class Rate:
    """How often an address may ask: so many at once, and as many again in a minute."""

    def __init__(self, per_minute: int) -> None:
        self._most = float(per_minute)
        self._lock = threading.Lock()
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, address: str) -> float:
        """Take one; return 0, or how long to wait when none is left."""
        now_s = time.monotonic()
        with self._lock:
            left, then_s = self._left.get(address, (self._most, now_s))
            left = min(self._most, left + (now_s - then_s) * self._most / 60)
            allowed = left >= 1
            self._left[address] = (left - 1 if allowed else left, now_s)
            self._left.move_to_end(address)
            while len(self._left) > _ADDRESSES:
                self._left.popitem(last=False)
        return 0.0 if allowed else (1 - left) * 60 / self._most


def guard(app: FastAPI, world: World, page_of: Callable[[Request, int, str], Response]) -> None:
    """Put the guard before an application; `page_of` makes an error's page for people."""
    wanted, rate = urlsplit(world.url), Rate(world.per_minute)

    def refuse(request: Request, status: int, detail: str, **headers: str) -> Response:
        answer = problem(request, status, detail) if _wants_json(request) else page_of(request, status, detail)
        answer.headers.update(headers)
        return answer

    @app.middleware("http")
    async def check(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        answer = _refusal(request, refuse)
        if answer is None:
            answer = await call_next(request)
        for name, value in _HEADERS.items():
            answer.headers.setdefault(name, value)
        if wanted.scheme == "https":
            answer.headers.setdefault("Strict-Transport-Security", "max-age=31536000")
        return answer

    def _refusal(request: Request, refuse: Callable[..., Response]) -> Response | None:
        if request.url.path.startswith(_OPEN):
            return None
        if request.headers.get("host", "") != wanted.netloc:
            return problem(request, 421, f"these pages are at {world.url}")
        wait_s = rate.wait_s(request.client.host if request.client else "")
        if wait_s:
            return refuse(request, 429, "too many requests; wait a little", **{"Retry-After": f"{wait_s + 1:.0f}"})
        if request.method in {"GET", "HEAD", "OPTIONS"}:
            return None
        size = request.headers.get("content-length", "")
        if not size.isascii() or not size.isdigit():
            return refuse(request, 411, "say how long the request is (Content-Length)")
        if int(size[:12]) > _LARGEST:
            return refuse(request, 413, f"a request has at most {_LARGEST} bytes")
        origin = request.headers.get("origin")
        same = origin == f"{wanted.scheme}://{wanted.netloc}" if origin else "cookie" not in request.headers
        return None if same else refuse(request, 403, "this request comes from another page")

    def told(request: Request, status: int, detail: str) -> Response:
        return refuse(request, status, detail)

    @app.exception_handler(StarletteHTTPException)
    async def http(request: Request, error: StarletteHTTPException) -> Response:
        answer = told(request, error.status_code, str(error.detail))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])[:200]
        return told(request, 422, f"{where}: {first['msg']}")

    @app.exception_handler(MaxgreenError)
    async def ours(request: Request, error: MaxgreenError) -> Response:
        return told(request, _status(error), str(error))

    @app.exception_handler(Exception)
    async def ours_not(request: Request, error: Exception) -> Response:
        _LOG.error("%s %s", request.method, request.url.path, exc_info=error)
        return told(request, 500, "something went wrong here; it is in the log")


def _status(error: MaxgreenError) -> int:
    match error:
        case UsageError():
            return 400
        case ChainRefusedError():
            return 409
        case Retryable():
            return 503
        case _:
            return 500


def problem(request: Request, status: int, detail: str) -> JSONResponse:
    """Return an error for scripts (RFC 9457)."""
    body: dict[str, Any] = {
        "type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail,
        "instance": request.url.path,
    }  # fmt: skip
    return JSONResponse(body, status, media_type="application/problem+json")


def not_found(what: str) -> HTTPException:
    """Return the error of what is not there."""
    return HTTPException(404, what)


def _wants_json(request: Request) -> bool:
    if request.url.path.startswith("/api/"):
        return True
    return "text/html" not in request.headers.get("accept", "")
