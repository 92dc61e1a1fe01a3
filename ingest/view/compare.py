"""Is the view what the ledger says? Batches, their samples, and days in their order, up to the first difference."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

import urllib3
from sqlalchemy import Engine

from ingest.config import InfluxSettings
from ingest.view.days import day_lines, days_position, hour_lines
from ingest.view.lines import NS_PER_MS, batch_lines
from ingest.view.sink import token_of
from maxgreen.errors import Fatal, Retryable
from maxgreen.ledger.batches import Verbatim
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import reader
from maxgreen.ledger.sums import DAY_S, days_of

_PAGE: Final = 200  # batches of one device that are asked for at once
_TIMEOUT_S: Final = 60.0
_FIELDS: Final = {
    "sample": ("v", "i", "p"),
    "register": ("forward_kwh", "reverse_kwh", "gap_s"),
    "minute": ("n", "v", "i", "p"),
    "work": ("shares", "hashes"),
    "day": ("forward_kwh", "reverse_kwh", "counted_s", "gap_s"),
    "hour": ("forward_kwh", "reverse_kwh", "counted_s", "gap_s"),
    "work_day": ("accepted", "rejected", "held", "shares", "hashes"),
}
_CLOSE: Final = 1e-9
Point = tuple[str, str, int]  # measurement, channel, ns
Fields = tuple[str, dict[str, float]]  # what a point comes from, and its fields

Ask = Callable[[str], list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Compared:
    """How many batches agree, and the first difference, if there is one."""

    batches: int
    difference: str | None


def asker(settings: InfluxSettings) -> Ask:
    """Return what sends an InfluxQL query and returns its series."""
    token = token_of(settings)
    database, _, policy = settings.bucket.partition("/")
    pool = urllib3.PoolManager(timeout=_TIMEOUT_S, retries=False)

    def ask(text: str) -> list[dict[str, Any]]:
        arguments = urlencode({"db": database, **({"rp": policy} if policy else {}), "q": text, "epoch": "ns"})
        try:
            answer = pool.request(
                "GET", f"{settings.url.rstrip('/')}/query?{arguments}", headers={"Authorization": f"Token {token}"}
            )
        except urllib3.exceptions.HTTPError as error:
            raise Retryable(f"InfluxDB does not answer: {error}") from error
        if answer.status != 200:
            text = answer.data[:200].decode(errors="replace")
            raise Fatal(f"InfluxDB answered {answer.status}: check url, token and bucket ({text})")
        result = json.loads(answer.data)["results"][0]
        if "error" in result:
            raise Fatal(f"InfluxDB: {result['error']}")
        series: list[dict[str, Any]] = result.get("series", [])
        return series

    return ask


def compare(
    engine: Engine,
    ask: Ask,
    name: str,
    verbatim: Verbatim | None = None,
    *,
    since_ms: int = 0,
    progress: Callable[[int], object] = lambda _n: None,
) -> Compared:
    """Compare the view with the ledger's batches from a time on, and with the days that its projector `name` wrote."""
    count = 0
    first_day_s = -(-since_ms // (DAY_S * 1000)) * DAY_S
    readers = reader(engine)
    with readers.begin() as connection:
        book = Book(connection, verbatim)
        for known in book.all_devices():
            device = known.record.device
            for page in _pages(book, device):
                rows = [row for row in page if row.received_ms >= since_ms]
                if rows and (difference := _difference(device, rows, ask)) is not None:
                    return Compared(count, difference)
                count += len(rows)
                progress(count)
            if (difference := _days_difference(readers, device, first_day_s, name, ask)) is not None:
                return Compared(count, difference)
    return Compared(count, None)


def _days_difference(readers: Engine, device: bytes, first_day_s: int, name: str, ask: Ask) -> str | None:
    def lines_of(day_s: int) -> list[str]:
        with readers.begin() as connection:
            hours = hour_lines(connection, day_s, day_s + DAY_S, [device])
            return day_lines(connection, day_s, [device]) + hours

    with readers.begin() as connection:
        days = days_of(connection, device, first_day_s, Book(connection).position(days_position(name)))
    for day_s in days:
        lines = lines_of(day_s)
        difference = _differs(device, dict(_expected("a day", line) for line in lines), ask)
        if difference is not None and lines_of(day_s) == lines:  # else it grew meanwhile
            return difference
    return None


def _pages(book: Book, device: bytes) -> Iterator[list[Any]]:
    from_seq = 0
    while page := book.kept_from(device, from_seq, _PAGE):
        yield page
        from_seq = page[-1].seq + 1


def _difference(device: bytes, rows: list[Any], ask: Ask) -> str | None:
    name = device.hex()
    said = {
        int(values[1]): (values[2], values[3])
        for values in _values(ask, "batch", ("seq", "verdict", "reason"), name, [_arrival_ns(row) for row in rows])
    }
    expected: dict[Point, Fields] = {}
    for row in rows:
        lines = batch_lines(row)
        verdict, reason = _strings(lines[0])
        if said.get(row.seq) != (verdict, reason):
            return f"device {name} seq {row.seq}: the ledger says {verdict} {reason}, the view {said.get(row.seq)}"
        for line in lines[1:]:
            if line.startswith("event,"):  # words, for annotations
                continue
            point, fields = _expected(f"seq {row.seq}", line)
            expected[point] = fields
    return _differs(device, expected, ask)


def _differs(device: bytes, expected: dict[Point, Fields], ask: Ask) -> str | None:
    """Return the first of these points of a device that the view has otherwise."""
    name = device.hex()
    found: dict[Point, dict[str, float]] = {}
    for measurement, names in _FIELDS.items():
        times = [t_ns for what, _, t_ns in expected if what == measurement]
        if times:
            for t_ns, channel, *values in _values(ask, measurement, ("channel", *names), name, times):
                found[measurement, str(channel or ""), int(t_ns)] = dict(zip(names, values, strict=True))
    for point, (origin, wanted) in expected.items():
        there = found.get(point)
        if there is None or any(
            not isinstance(there[k], int | float) or abs(there[k] - v) > _CLOSE * max(1, abs(v))
            for k, v in wanted.items()
        ):
            measurement, channel, t_ns = point
            where = f"device {name} {origin}: {measurement} of channel {channel} at {t_ns} ns"
            return f"{where} is {wanted}, the view has {there}"
    return None


def _values(ask: Ask, measurement: str, fields: tuple[str, ...], device: str, times: list[int]) -> Iterator[list[Any]]:
    names = ", ".join(f'"{field}"' for field in fields)
    text = (
        f'SELECT {names} FROM "{measurement}" WHERE "device" = \'{device}\' '  # noqa: S608 - hex digits
        f"AND time >= {min(times)} AND time <= {max(times)}"
    )
    for series in ask(text):
        yield from series["values"]


def _arrival_ns(row: Any) -> int:
    return int(row.received_ms * NS_PER_MS + row.seq % NS_PER_MS)


def _strings(line: str) -> tuple[str, str]:
    fields = dict(field.split("=") for field in line.split(" ")[1].split(","))
    return fields["verdict"].strip('"'), fields["reason"].strip('"')


def _expected(origin: str, line: str) -> tuple[Point, Fields]:
    """Return a line's point, and where it comes from and its fields."""
    key, fields, t_ns = line.split(" ")
    measurement, *tags = key.split(",")
    channel = dict(tag.split("=") for tag in tags).get("channel", "")
    values = {name: float(value.rstrip("i")) for name, value in (field.split("=") for field in fields.split(","))}
    return (measurement, channel, int(t_ns)), (origin, values)
