"""Lines to `POST /api/v2/write`, which InfluxDB 1.8+, 2.x and other stores take."""

import json
import threading
from typing import Final

from influxdb_client import InfluxDBClient
from influxdb_client.client.write_api import SYNCHRONOUS, WriteApi
from influxdb_client.rest import ApiException
from urllib3.exceptions import HTTPError

from ingest.config import InfluxSettings
from ingest.view.sink import REQUEST_S, BadLinesError, TooLargeError, TooOldError, token_of
from maxgreen.errors import Fatal, Retryable

_REFUSED: Final = {400, 422}
_HOLD: Final = {401, 403, 404}
_TOO_LARGE: Final = 413
_OLD: Final = "retention"  # InfluxDB 1: "beyond retention policy", 2: "outside retention policy"
_PARTIAL: Final = "partial write"
_CONFLICT: Final = "conflict"


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

    def write(self, lines: bytes) -> None:
        """Write lines; BadLinesError, TooLargeError, TooOldError, Retryable or Fatal say what was not taken."""
        try:
            self._connected().write(self._settings.bucket, self._settings.org, lines, write_precision="ns")
        except ApiException as error:
            raise _kind(error) from error
        except (OSError, HTTPError) as error:
            raise Retryable(f"InfluxDB does not answer: {error}") from error


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
