"""What each device's UTC hours and days add up to, in the view: from the ledger's sums, again while they grow."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from sqlalchemy import Connection, Engine

from ingest.view.lines import decimal
from ingest.view.sink import Sink, patiently, write_lines
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import reader
from maxgreen.ledger.sums import DAY_S, HOUR_S, changed_hours, channel_totals, device_totals
from maxgreen.protocol.batch import role_name
from maxgreen.units import MWS_PER_KWH

_CHANGES: Final = 20_000
_DEVICES: Final = 500
_NS: Final = 1_000_000_000


def days_position(name: str) -> str:
    """Return the position of the days of a projector's view."""
    return f"{name}-days"


def day_lines(connection: Connection, day_s: int, devices: list[bytes]) -> list[str]:
    """Return the lines of a UTC day of some devices."""
    span = (day_s, day_s + DAY_S, DAY_S)
    lines = [
        f"work_day,device={bytes(row.device).hex()} accepted={row.accepted}i,rejected={row.rejected}i,"
        f"held={row.suspended}i,shares={row.shares}i,hashes={float(row.hashes)} {row.begin_s * _NS}"
        for row in device_totals(connection, *span, devices)
    ]
    return lines + _energy_lines(connection, "day", span, devices)


def hour_lines(connection: Connection, from_s: int, until_s: int, devices: list[bytes]) -> list[str]:
    """Return the lines of the UTC hours of some devices in from ≤ t < until."""
    return _energy_lines(connection, "hour", (from_s, until_s, HOUR_S), devices)


def _energy_lines(connection: Connection, name: str, span: tuple[int, int, int], devices: list[bytes]) -> list[str]:
    roles = Book(connection).roles(devices)
    return [
        f"{name},device={bytes(row.device).hex()},channel={row.channel},role={_role(roles, row)} "
        f"forward_kwh={int(row.energy_mws) / MWS_PER_KWH},reverse_kwh={int(row.reverse_mws) / MWS_PER_KWH},"
        f"counted_s={decimal(int(row.counted_ms), 3)},gap_s={decimal(int(row.unmetered_ms), 3)} {row.begin_s * _NS}"
        for row in channel_totals(connection, *span, devices)
    ]


def _role(roles: Mapping[tuple[bytes, int], int], row: Any) -> str:
    role = roles.get((bytes(row.device), row.channel))
    return "unknown" if role is None else role_name(role)  # a channel that the registry does not know yet


class Days:
    """Writes the hours and days that changed; `name` is that of its projector's position."""

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
            hours, newest = changed_hours(connection, Book(connection).position(self._position), _CHANGES)
        if newest is None:
            return False
        days: dict[int, set[bytes]] = defaultdict(set)
        for hour_s, devices in hours.items():
            days[hour_s // DAY_S * DAY_S] |= devices
        of_hour = lambda connection, at, some: hour_lines(connection, at, at + HOUR_S, some)  # noqa: E731
        if not (self._write(hours, of_hour) and self._write(days, day_lines)):
            return False
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

    def _write(
        self, changed: Mapping[int, set[bytes]], lines_of: Callable[[Connection, int, list[bytes]], list[str]]
    ) -> bool:
        """Write spans of devices; False when the view is no more ours to write."""
        for begin_s, devices in sorted(changed.items()):
            for some in _some(devices):
                with self._readers.begin() as connection:
                    lines = lines_of(connection, begin_s, some)
                if not self._may_write():
                    return False
                write_lines(self._sink, lines)
        return True

    def _move(self, revision: int) -> None:
        with self._engine.begin() as connection:
            Book(connection).set_position(self._position, revision)


def _some(devices: set[bytes]) -> Iterator[list[bytes]]:
    ordered = sorted(devices)
    for begin in range(0, len(ordered), _DEVICES):
        yield ordered[begin : begin + _DEVICES]
