"""What each device's UTC days add up to, in the view: from the ledger's sums, written again while a day grows."""

from collections.abc import Callable, Iterator
from typing import Final

from sqlalchemy import Connection, Engine

from ingest.view.lines import NS_PER_MS, decimal
from ingest.view.sink import Sink, patiently, write_lines
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import reader
from maxgreen.ledger.sums import changed_days, day_totals

_CHANGES: Final = 20_000
_DEVICES: Final = 500
_KWH: Final = 3.6e9  # mW·s


def days_position(name: str) -> str:
    """Return the position of the days of a projector's view."""
    return f"{name}-days"


def day_lines(connection: Connection, day_s: int, devices: list[bytes]) -> list[str]:
    """Return the lines of a day of some devices."""
    whole, channels = day_totals(connection, day_s, devices)
    t_ns = day_s * 1000 * NS_PER_MS
    lines = [
        f"work_day,device={bytes(row.device).hex()} accepted={row.accepted}i,rejected={row.rejected}i,"
        f"held={row.suspended}i,shares={row.shares}i,hashes={float(row.hashes)} {t_ns}"
        for row in whole
    ]
    lines += [
        f"day,device={bytes(row.device).hex()},channel={row.channel} forward_kwh={int(row.energy_mws) / _KWH},"
        f"reverse_kwh={int(row.reverse_mws) / _KWH},counted_s={decimal(int(row.counted_ms), 3)},"
        f"gap_s={decimal(int(row.unmetered_ms), 3)} {t_ns}"
        for row in channels
    ]
    return lines


class Days:
    """Writes the days that changed; `name` is that of its projector's position."""

    def __init__(self, engine: Engine, sink: Sink, name: str, may_write: Callable[[], bool] = lambda: True) -> None:
        """`may_write` is asked before each request."""
        self._engine = engine
        self._readers = reader(engine)
        self._sink = sink
        self._position = days_position(name)
        self._may_write = may_write

    def step(self) -> bool:
        """Write the days of the next changes; tell whether there were any. The position moves only after the write.

        Retryable and Fatal when the database is away or does not let us in: then nothing moved.
        """
        with self._readers.begin() as connection:
            changed, newest = changed_days(connection, Book(connection).position(self._position), _CHANGES)
        if newest is None:
            return False
        for day_s, devices in sorted(changed.items()):
            for some in _some(devices):
                with self._readers.begin() as connection:
                    lines = day_lines(connection, day_s, some)
                if not self._may_write():
                    return False
                write_lines(self._sink, lines)
        self._move(newest)
        return True

    def rebuild(self, *, afresh: bool = False) -> None:
        """Write every day of the ledger, also beside the running service; it goes on where it was interrupted.

        A day that changes meanwhile comes again in its turn, so what is written last is the newest.
        """
        if afresh:
            self._move(0)
        while patiently(self.step):
            pass
        self._move(0)

    def _move(self, revision: int) -> None:
        with self._engine.begin() as connection:
            Book(connection).set_position(self._position, revision)


def _some(devices: set[bytes]) -> Iterator[list[bytes]]:
    ordered = sorted(devices)
    for begin in range(0, len(ordered), _DEVICES):
        yield ordered[begin : begin + _DEVICES]
