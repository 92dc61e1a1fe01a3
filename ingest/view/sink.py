"""Where lines go: `POST /api/v2/write`, which InfluxDB 1.8+, 2.x and other stores take."""

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar

from influxdb_client import InfluxDBClient
from influxdb_client.client.write_api import SYNCHRONOUS, WriteApi
from influxdb_client.rest import ApiException
from urllib3.exceptions import HTTPError

from ingest.config import InfluxSettings
from maxgreen.errors import Fatal, MaxgreenError, Retryable
from maxgreen.ledger.lease import short

_LOG: Final = logging.getLogger(__name__)
MAX_LINES: Final = 10_000  # InfluxDB 2 documentation, "Optimize writes"
_RETRY_S: Final = 2.0
_T = TypeVar("_T")
REQUEST_S: Final = 8.0  # a request takes no longer
_REFUSED: Final = {400, 422}
_HOLD: Final = {401, 403, 404}
_TOO_LARGE: Final = 413
_OLD: Final = "retention"  # InfluxDB 1: "beyond retention policy", 2: "outside retention policy"
_PARTIAL: Final = "partial write"
_CONFLICT: Final = "conflict"


class BadLinesError(MaxgreenError):
    """The database refused lines for what they are, and none or only some of the others were written."""


class TooLargeError(MaxgreenError):
    """The request was too large; nothing was written."""


class TooOldError(MaxgreenError):
    """Some lines are older than what the database keeps; the others were written."""


def target_of(settings: InfluxSettings) -> str:
    """Return a short name of the database that settings mean: what was written there is no use to another."""
    return short(f"{settings.url.rstrip('/')}|{settings.org}|{settings.bucket}")


class Sink(Protocol):
    """Where lines go."""

    def write(self, lines: str) -> None:
        """Write lines; BadLinesError, TooLargeError, TooOldError, Retryable or Fatal say what was not taken."""
        ...


def token_of(settings: InfluxSettings) -> str:
    """Return the token of settings; Fatal when its file cannot be read."""
    try:
        token = settings.token_file.read_text().strip() if settings.token_file else ""
    except (OSError, UnicodeDecodeError) as error:
        raise Fatal(f"influx.token_file {settings.token_file}: {error}") from error
    if not token.isprintable():
        raise Fatal(f"influx.token_file {settings.token_file}: expected one line, the token")
    return token


class InfluxSink:
    """An InfluxDB, by its write endpoint; several threads may write."""

    def __init__(self, settings: InfluxSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()  # guards the next two
        self._token: str | None = None
        self._api: WriteApi

    def _connected(self) -> WriteApi:
        """Return a client with the token as its file has it now."""
        token = token_of(self._settings)
        with self._lock:
            if token != self._token:
                url, org, timeout_ms = self._settings.url, self._settings.org, int(1000 * REQUEST_S)
                client = InfluxDBClient(url, token=token, org=org, enable_gzip=False, timeout=timeout_ms)
                self._api = client.write_api(write_options=SYNCHRONOUS)
                self._token = token
            return self._api

    def write(self, lines: str) -> None:
        """Write lines; BadLinesError, TooLargeError, TooOldError, Retryable or Fatal say what was not taken."""
        try:
            self._connected().write(self._settings.bucket, self._settings.org, lines, write_precision="ns")
        except ApiException as error:
            raise _kind(error) from error
        except (OSError, HTTPError) as error:
            raise Retryable(f"InfluxDB does not answer: {error}") from error


def write_lines(sink: Sink, lines: Sequence[str]) -> None:
    """Write lines of which each may be refused alone: those are said and left out, and none keeps others from the view.

    Retryable and Fatal when the database is away or does not let us in.
    """
    try:
        sink.write("\n".join(lines))
    except TooOldError as error:
        _LOG.info("not in the view, the database keeps nothing that old: %s", error)
    except BadLinesError as error:
        if len(lines) > 1:
            write_lines(sink, lines[: len(lines) // 2])
            write_lines(sink, lines[len(lines) // 2 :])
        else:
            _LOG.error("not in the view: %s (%s); once mended: maxgreen ingest rebuild-view", lines[0], error)


def patiently(step: Callable[[], _T]) -> _T:
    """Return what a step returns; a database that is away is waited for."""
    while True:
        try:
            return step()
        except Retryable as error:
            _LOG.warning("waiting: %s", error)
            time.sleep(_RETRY_S)


def _kind(error: ApiException) -> Exception:
    text = _said(error)
    if error.status in _REFUSED:
        if _PARTIAL in text and _OLD in text and _CONFLICT not in text:
            return TooOldError(text)
        return BadLinesError(f"InfluxDB answered {error.status}: {text}")
    if error.status == _TOO_LARGE:
        return TooLargeError("InfluxDB answered 413")
    if error.status in _HOLD:
        return Fatal(f"InfluxDB answered {error.status}: check url, token and bucket ({text})")
    return Retryable(f"InfluxDB answered {error.status}: {text}")


def _said(error: ApiException) -> str:
    try:
        body = json.loads(error.body)
        return str(body.get("message") or body.get("error") or "")[:300]
    except (TypeError, ValueError, AttributeError):
        return str(error.body or "")[:300]
