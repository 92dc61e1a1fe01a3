"""The InfluxDB view: written from the ledger, with a position that the ledger keeps."""

import logging
from collections.abc import Iterator
from typing import Any, Final, Protocol

from influxdb_client import InfluxDBClient
from influxdb_client.client.write_api import SYNCHRONOUS
from influxdb_client.rest import ApiException
from sqlalchemy import Engine
from urllib3.exceptions import HTTPError

from ingest.config import InfluxSettings
from maxgreen.errors import Fatal, MaxgreenError, Retryable
from maxgreen.ledger.book import Book
from maxgreen.protocol.batch import Batch, parse_batch
from maxgreen.protocol.reasons import Reason, Verdict

_LOG: Final = logging.getLogger(__name__)
POSITION: Final = "influx"
MAX_LINES: Final = 5_000
_BATCHES: Final = 500
_TIMEOUT_MS: Final = 30_000
_REFUSED: Final = {400, 422}
_HOLD: Final = {401, 403, 404}
_TOO_LARGE: Final = 413


class BadLinesError(MaxgreenError):
    """The database refused lines for what they are; others may be good."""


class Sink(Protocol):
    """Where lines go."""

    def write(self, lines: list[str]) -> None:
        """Write lines; BadLinesError, Retryable or Fatal when they were not taken."""
        ...


class InfluxSink:
    """`POST /api/v2/write`, which InfluxDB 1.8+, 2.x and other stores take."""

    def __init__(self, settings: InfluxSettings) -> None:
        token = settings.token_file.read_text().strip() if settings.token_file else ""
        self._bucket = settings.bucket
        self._org = settings.org
        self._client = InfluxDBClient(
            settings.url, token=token, org=settings.org, enable_gzip=False, timeout=_TIMEOUT_MS
        )
        self._api = self._client.write_api(write_options=SYNCHRONOUS)

    def write(self, lines: list[str]) -> None:
        """Write lines; BadLinesError, Retryable or Fatal when they were not taken."""
        try:
            self._api.write(self._bucket, self._org, lines, write_precision="ms")
        except ApiException as error:
            if error.status in _REFUSED or error.status == _TOO_LARGE:
                raise BadLinesError(f"InfluxDB answered {error.status}") from error
            if error.status in _HOLD:
                raise Fatal(f"InfluxDB answered {error.status}: check url, token and bucket") from error
            raise Retryable(f"InfluxDB answered {error.status}") from error
        except (OSError, HTTPError) as error:
            raise Retryable(f"InfluxDB does not answer: {error}") from error


class Projector:
    """Copies what changed in the ledger into the view."""

    def __init__(self, engine: Engine, sink: Sink) -> None:
        self._engine = engine
        self._sink = sink
        self.quarantined = 0

    def step(self) -> int:
        """Project some changed batches; return how many. The position moves only after the write."""
        with self._engine.begin() as connection:
            book = Book(connection)
            rows = book.changed_since(book.position(POSITION), _BATCHES)
        if not rows:
            return 0
        lines = [line for row in rows for line in batch_lines(row)]
        for start in range(0, len(lines), MAX_LINES):
            self._write(lines[start : start + MAX_LINES])
        with self._engine.begin() as connection:
            Book(connection).set_position(POSITION, rows[-1].revision)
        return len(rows)

    def rebuild(self) -> int:
        """Fill an empty view from the whole ledger; return how many batches it has."""
        with self._engine.begin() as connection:
            Book(connection).set_position(POSITION, 0)
        count = 0
        while step := self.step():
            count += step
        return count

    def _write(self, lines: list[str]) -> None:
        """Write lines; halves that are refused are split until the bad lines stand alone."""
        try:
            self._sink.write(lines)
        except BadLinesError as error:
            if len(lines) == 1:
                self.quarantined += 1
                _LOG.error("line left out of the view (%s): %.200s", error, lines[0])
                return
            middle = len(lines) // 2
            self._write(lines[:middle])
            self._write(lines[middle:])


def batch_lines(row: Any) -> Iterator[str]:
    """Return the line protocol of a ledger row: samples and energy when accepted, its verdict always.

    The same row always gives the same lines, so writing twice changes nothing.
    """
    device = bytes(row.device).hex()
    t_ms = row.t0_ms if row.t0_ms is not None else row.received_ms
    reason = Reason(row.reason)
    yield (
        f"batch,device={device},verdict={row.verdict},reason={reason.label} "
        f"seq={row.seq}i,shares={row.shares}i,hashes={float(row.hashes)} {t_ms}"
    )
    if row.verdict != Verdict.ACCEPTED.value or row.t0_ms is None:
        return
    batch: Batch = parse_batch(bytes(row.message)).batch
    for channel in batch.channels:
        tags = f"device={device},channel={channel.number},role={channel.role}"
        for voltage_uv, current_ua, offset_ms in zip(
            channel.voltage_uv, channel.current_ua, channel.offsets_ms, strict=True
        ):
            v, i = voltage_uv / 1e6, current_ua / 1e6
            yield f"sample,{tags} v={v},i={i},p={v * i} {t_ms + offset_ms}"
        last_ms = t_ms + channel.offsets_ms[-1]
        yield f"register,{tags} forward_kwh={channel.register_mws / 3.6e9},gap_s={channel.gap_ms / 1000} {last_ms}"
