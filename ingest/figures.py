"""Gauges of the fleet, the view, the disk, certificates."""

import shutil
from pathlib import Path
from typing import Final

from cryptography import x509
from sqlalchemy import Engine, func, select

from ingest.metrics import Metrics
from maxgreen.backend import SILENT_MS
from maxgreen.clock import Clock
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import reader
from maxgreen.ledger.schema import batches, devices, receipts

_HEARD_MS: Final = 7 * 86_400_000
_EVERY_S: Final = 15.0


class Figures:
    """Sets the gauges; one thread calls `step`."""

    def __init__(
        self, engine: Engine, metrics: Metrics, clock: Clock, view: str | None, files: tuple[Path, ...]
    ) -> None:
        """`view` is the position of the view, `files` are certificates."""
        self._readers, self._metrics, self._clock = reader(engine), metrics, clock
        self._view = view
        self._files = files
        self._ledger = engine.url.database if engine.dialect.name == "sqlite" else None
        self._heard: dict[bytes, int] | None = None  # when each device's newest batch came
        self._revision = 0

    def step(self) -> float:
        """Look once; return how long to pause, s. Retryable while the ledger is away."""
        now_ms = self._clock.now_ms()
        self._certificates()
        if self._ledger:
            self._metrics.free.labels("ledger").set(shutil.disk_usage(Path(self._ledger).absolute().parent).free)
        with self._readers.begin() as connection:
            book = Book(connection)
            revision = book.revision()
            if self._heard is None:
                newest = func.max(receipts.c.server_ms)
                since = receipts.c.server_ms > now_ms - _HEARD_MS
                rows = connection.execute(select(receipts.c.device, newest).where(since).group_by(receipts.c.device))
            else:
                newest = func.max(batches.c.received_ms)
                since = batches.c.revision > self._revision
                rows = connection.execute(select(batches.c.device, newest).where(since).group_by(batches.c.device))
            found = {bytes(device): int(at_ms) for device, at_ms in rows}
            registered = connection.execute(select(func.count()).select_from(devices)).scalar_one()
            beacon = book.newest_beacon()
            behind = revision - book.position(self._view) if self._view else 0
        self._revision = revision
        self._heard = {**(self._heard or {}), **found}
        self._tell(registered, now_ms)
        if beacon is not None:
            self._metrics.beacon.set(beacon[0].issued_s)
        self._metrics.view_behind.set(max(0, behind))
        return _EVERY_S

    def _tell(self, registered: int, now_ms: int) -> None:
        heard = [at_ms for at_ms in (self._heard or {}).values() if at_ms > now_ms - _HEARD_MS]
        states = {
            "registered": registered,
            "heard": len(heard),
            "silent": sum(at_ms < now_ms - SILENT_MS for at_ms in heard),
        }
        for state, count in states.items():
            self._metrics.devices.labels(state).set(count)

    def _certificates(self) -> None:
        for path in self._files:
            try:
                certificate = x509.load_pem_x509_certificate(path.read_bytes())
            except (OSError, ValueError):
                continue  # the connection says so
            self._metrics.certificate.labels(path.name).set(certificate.not_valid_after_utc.timestamp())
