"""Who may come in, and what a browser may do with what it gets: hosts, origins, rates, headers, errors."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dapp.words import language_of, translated
from dapp.world import World
from maxgreen.chain.explain import ChainRefusedError
from maxgreen.errors import MaxgreenError, Retryable, UsageError
from maxgreen.said import in_words

_LOG: Final = logging.getLogger(__name__)
_ADDRESSES: Final = 10_000  # whose rate is remembered
_DIGITS: Final = 9  # of a length; more says nothing that a few do not
_LARGEST: Final = 256 * 1024  # of a request's body, bytes
_STATIC: Final = "/static/"
_OPEN: Final = ("/health/", _STATIC)
PageOf = Callable[[Request, int, str], Response]
_MISSING: Final = {"NoSuchOrder", "NoSuchLine", "NotRegistered", "ERC721NonexistentToken"}
_LIKE: Final = {"day": "2026-10-01", "month": "2026-10"}
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


class Guard:
    """An ASGI middleware: refuses what should not come in, and tells browsers what they may do with what goes out."""

    def __init__(self, app: ASGIApp, world: World, page_of: PageOf) -> None:
        self._app, self._page_of = app, page_of
        self._wanted, self._rate = urlsplit(world.url), Rate(world.per_minute)
        headers = dict(_HEADERS)
        if self._wanted.scheme == "https":
            headers["Strict-Transport-Security"] = "max-age=31536000"
        self._headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                known = {name for name, _ in message["headers"]}
                message["headers"] += [one for one in self._headers if one[0] not in known]
                if scope["path"].startswith(_STATIC):
                    message["headers"].append((b"cache-control", b"public, max-age=3600"))
            await send(message)

        request = Request(scope)
        refusal = self._refusal(request)
        try:
            await (refusal or self._app)(scope, receive, sending)
        except Exception:
            _LOG.exception("%s %s", request.method, request.url.path)
            if begun:
                raise
            wrong = told(request, 500, "something went wrong here; it is in the log", self._page_of)
            await wrong(scope, receive, sending)

    def _refusal(self, request: Request) -> Response | None:
        if request.url.path.startswith(_OPEN):
            return None
        wanted = self._wanted
        if request.headers.get("host", "") != wanted.netloc:
            return problem(request, 421, f"these pages are at {wanted.scheme}://{wanted.netloc}")
        wait_s = self._rate.wait_s(request.client.host if request.client else "")
        if wait_s:
            answer = told(request, 429, "too many requests; wait a little", self._page_of)
            answer.headers["Retry-After"] = f"{wait_s + 1:.0f}"
            return answer
        if request.method in {"GET", "HEAD", "OPTIONS"}:
            return None
        size = request.headers.get("content-length", "")
        if not size.isascii() or not size.isdigit():
            return told(request, 411, "say how long the request is (Content-Length)", self._page_of)
        if len(size) > _DIGITS or int(size) > _LARGEST:
            return told(request, 413, f"a request has at most {_LARGEST} bytes", self._page_of)
        origin = request.headers.get("origin")
        same = origin == f"{wanted.scheme}://{wanted.netloc}" if origin else "cookie" not in request.headers
        return None if same else told(request, 403, "this request comes from another page", self._page_of)


def explain_errors(app: FastAPI, page_of: PageOf) -> None:
    """Let every error be a problem for scripts (RFC 9457), and a page for people."""

    @app.exception_handler(StarletteHTTPException)
    async def http(request: Request, error: StarletteHTTPException) -> Response:
        answer = await run_in_threadpool(told, request, error.status_code, str(error.detail), page_of)
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])[:200]
        like = _LIKE.get(where)
        text = f"{where}: {first['msg']}" if like is None else f"{where}: expected one like {like}"
        return await run_in_threadpool(told, request, 422, text, page_of)

    @app.exception_handler(MaxgreenError)
    async def ours(request: Request, error: MaxgreenError) -> Response:
        language = language_of(request.cookies, request.headers)
        text = in_words(error.args[0] if error.args else "", lambda template: translated(template, language))
        return await run_in_threadpool(told, request, _status(error), text, page_of)


def told(request: Request, status: int, detail: str, page_of: PageOf) -> Response:
    """Return an error, as JSON or as a page."""
    return problem(request, status, detail) if _wants_json(request) else page_of(request, status, detail)


def _status(error: MaxgreenError) -> int:
    match error:
        case UsageError():
            return 400
        case ChainRefusedError():
            return 404 if error.name in _MISSING else 409
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
