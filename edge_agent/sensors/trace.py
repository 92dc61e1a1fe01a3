"""Measured traces: CSV or JSON lines with ts_utc, channel, v_bus_V, i_A, checked line by line.

Loggers write many dialects. What can be read without a guess is read (byte order marks, UTF-16, semicolons, tabs,
decimal commas, spaces in the header); what was not measured is left out and said; the rest is refused with its cure.
"""

import codecs
import csv
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, Final, TextIO

from edge_agent.sensors.base import Electrical
from maxgreen.errors import UsageError
from maxgreen.protocol.batch import MAX_INTERVAL_MS

COLUMNS: Final = ("ts_utc", "channel", "v_bus_V", "i_A")
MAX_VOLTAGE_UV: Final = 26_000_000
MAX_CURRENT_UA: Final = 2**31 - 1
NIGHT_VOLTAGE_UV: Final = -1_000_000  # a meter without light reads a little below zero: down to here it is zero
# what loggers write where nothing was measured; 655.35, 327.67 and 6553.5 are registers of all ones
SENTINELS: Final = frozenset(
    Decimal(text)
    for text in ("-999", "-9999", "-99999", "9999", "99999", "655.35", "6553.5", "65535", "327.67", "32767", "-32768")
)
_FIRST, _LAST = datetime(1990, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
_LONGEST_NUMBER: Final = 40
_LONGEST_LINE: Final = 65_536
_BLANKS: Final = re.compile(r'" +(?=[,;\t\r\n]|$)')  # after a quotation mark that closes
_NUMBER: Final = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d{1,9})?", re.ASCII)
_LARGEST_EXPONENT: Final = 9
_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TracePoint:
    """One reading of a trace; ms since the epoch."""

    t_ms: int
    reading: Electrical


@dataclass(frozen=True)
class Trace:
    """A trace's channels, each ascending in time; `remarks` say what was left out."""

    path: Path
    channels: Mapping[str, tuple[TracePoint, ...]]
    remarks: tuple[str, ...] = ()

    def channel(self, name: str | None) -> tuple[TracePoint, ...]:
        """Return a channel by name, or the first; UsageError names those that there are."""
        if name is None:
            return next(iter(self.channels.values()))
        if name not in self.channels:
            known = ", ".join(list(self.channels)[:8])
            raise UsageError(f"{self.path}: no channel {name!r}; it has: {known}")
        return self.channels[name]


@dataclass
class _LeftOut:
    """Lines that are none: how many of each kind."""

    counts: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def remarks(self, path: Path) -> tuple[str, ...]:
        return tuple(f"{path}: lines left out: {count}; {kind}" for kind, count in self.counts.items())


def read_trace(path: Path) -> Trace:
    """Read a trace, CSV or (.jsonl, .ndjson) JSON lines; UsageError names file, line and cure."""
    channels: dict[str, list[TracePoint]] = {}
    left_out, marks = _LeftOut(), _Marks()
    try:
        with path.open(newline="", encoding=_encoding(path)) as file:
            lines = _whole_lines(file, path, left_out)
            rows = _json_rows(lines, path) if path.suffix in {".jsonl", ".ndjson"} else _csv_rows(lines, path)
            for where, row in rows:
                _take(row, where, channels, left_out, marks)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; name a CSV or JSON lines file with --trace") from error
    except UnicodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error
    except csv.Error as error:
        raise UsageError(f"{path}: not a CSV file: {error}") from error
    if not any(channels.values()):
        raise UsageError(f"{path}: no samples in it; name another trace")
    remarks = left_out.remarks(path)
    for remark in remarks:
        _LOG.warning("%s", remark)
    return Trace(path, {name: tuple(points) for name, points in channels.items() if points}, remarks)


Row = Mapping[str, str | None]


@dataclass
class _Marks:
    """The decimal mark of a file: where both are met one of them divides thousands, and nobody can tell which."""

    first: str = ""

    def check(self, text: str, where: str) -> None:
        mark = next((mark for mark in ".," if mark in text), "")
        if self.first and mark and mark != self.first:
            raise UsageError(
                f"{where}: {text} has another decimal mark than the numbers before it; write all with a point"
            )
        self.first = self.first or mark


def _take(row: Row, where: str, channels: dict[str, list[TracePoint]], left_out: _LeftOut, marks: _Marks) -> None:
    points = channels.setdefault((row["channel"] or "").strip(), [])
    voltage, current = (_number(row[name], name, where) for name in ("v_bus_V", "i_A"))
    if voltage in SENTINELS or current in SENTINELS:
        left_out.add("they hold a logger's mark for no reading, like -9999 or 655.35")
        return
    for name in ("v_bus_V", "i_A"):
        marks.check(row[name] or "", where)
    point = TracePoint(_time(row["ts_utc"], where), _electrical(voltage, current, where))
    if points and point == points[-1]:
        left_out.add("the line before them says the same")
        return
    if points and point.t_ms == points[-1].t_ms:
        raise UsageError(f"{where}: a second reading for {row['ts_utc']}; keep one of the two")
    if points and point.t_ms < points[-1].t_ms:
        raise UsageError(f"{where}: time {row['ts_utc']} is not after the one before; sort the trace by time")
    points.append(point)


def _encoding(path: Path) -> str:
    """Return how the text is encoded, by its byte order mark."""
    with path.open("rb") as file:
        begin = file.read(4)
    if begin.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if 0 < begin.count(0) < len(begin):
        raise UsageError(f"{path}: UTF-16 without a byte order mark, as it seems; save it as UTF-8")
    return "utf-8"


def _whole_lines(file: TextIO, path: Path, left_out: _LeftOut) -> Iterator[str]:
    """Yield the lines; those of NUL bytes, as a power cut leaves them, are empty."""
    for number in count(1):
        line = file.readline(_LONGEST_LINE)
        if not line:
            return
        if len(line) == _LONGEST_LINE and line.strip("\0"):
            raise UsageError(f"{path} line {number}: longer than {_LONGEST_LINE} characters; is it a trace?")
        if "\0" not in line:
            yield line
        elif line.strip("\0\r\n \t"):
            raise UsageError(
                f"{path} line {number}: NUL bytes in the middle, as after a power cut; take them out: tr -d '\\000'"
            )
        else:
            left_out.add("they hold NUL bytes alone, as after a power cut")
            yield "\n"


def _csv_rows(lines: Iterable[str], path: Path) -> Iterator[tuple[str, Row]]:
    found = iter(lines)
    header = next(found, "")
    if not header.strip():
        raise UsageError(f"{path}: empty; expected a CSV with the columns {', '.join(COLUMNS)}")
    delimiter = max(",;\t", key=lambda mark: (header.count(mark), mark == ","))
    names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter))]
    if missing := [name for name in COLUMNS if name not in names]:
        raise UsageError(f"{path} line 1: no column {missing[0]}; expected {', '.join(COLUMNS)}")
    if twice := _twice(names):
        raise UsageError(f"{path} line 1: two columns {twice}; keep the one that was measured")
    rows = csv.reader((_BLANKS.sub('"', line) for line in found), delimiter=delimiter, strict=True)
    while True:
        where = f"{path} line {rows.line_num + 2}"
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise UsageError(f"{where}: a quotation mark opens here and is not closed well ({error})") from error
        if row is None:
            return
        if any("\n" in value for value in row):
            raise UsageError(f"{where}: a quotation mark opens here and is not closed in its line; take it out")
        if any(value.strip() for value in row[len(names) :]):
            raise UsageError(
                f"{where}: {len(row)} values for {len(names)} columns; put decimal commas in quotation marks"
            )
        if any(value.strip() for value in row):
            yield where, dict(zip(names, [*row, *[None] * len(names)], strict=False))


def _json_rows(lines: Iterable[str], path: Path) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(lines, 1):
        where = f"{path} line {number}"
        if not line.strip():
            continue
        try:
            value = json.loads(line, parse_float=str, parse_int=str, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where}: not a JSON object: {error}") from error
        if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in COLUMNS):
            raise UsageError(f"{where}: expected an object with {', '.join(COLUMNS)}")
        yield where, value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if twice := _twice([name for name, _ in pairs]):
        raise ValueError(f"{twice} is in it twice")
    return dict(pairs)


def _twice(names: Sequence[str]) -> str | None:
    """Return the column that is named more than once, None when none is."""
    return next((name for name in COLUMNS if names.count(name) > 1), None)


def interval_of(points: tuple[TracePoint, ...]) -> int:
    """Return the nominal sampling interval of a channel: the median step, ms."""
    steps = [later.t_ms - earlier.t_ms for earlier, later in zip(points, points[1:], strict=False)]
    return min(MAX_INTERVAL_MS, int(median(steps))) if steps else 1_000


def _time(text: str | None, where: str) -> int:
    time: datetime | None
    try:
        time = datetime.fromisoformat((text or "").strip())
        time = None if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        time = None
    if time is None:
        raise UsageError(f"{where}: time {(text or '')[:40]!r}: expected UTC like 2015-11-11T07:00:00Z")
    if not _FIRST <= time < _LAST:
        raise UsageError(
            f"{where}: time {text!r} is not between {_FIRST.year} and {_LAST.year}: a logger whose clock was not set? "
            "Shift the times, or take these lines out"
        )
    return round(time.timestamp() * 1000)


def _electrical(voltage: Decimal, current: Decimal, where: str) -> Electrical:
    voltage_uv, current_ua = (int((value * 1_000_000).to_integral_value()) for value in (voltage, current))
    if voltage_uv < NIGHT_VOLTAGE_UV:
        raise UsageError(f"{where}: voltage {voltage_uv / 1e6:g} V is negative; are the sensor's wires swapped?")
    if voltage_uv > MAX_VOLTAGE_UV:
        raise UsageError(
            f"{where}: voltage {voltage_uv / 1e6:g} V is outside the INA219's 0-26 V; "
            "scale the trace or use an INA228 (docs/sensors.md)"
        )
    if abs(current_ua) > MAX_CURRENT_UA:
        raise UsageError(f"{where}: current {current_ua / 1e6:g} A is outside ±2147 A; is the column in amperes?")
    return Electrical(max(0, voltage_uv), current_ua)


def _number(text: str | None, name: str, where: str) -> Decimal:
    """Return a number; a comma that stands for the point is one."""
    found = (text or "").strip()
    is_number = len(found) <= _LONGEST_NUMBER and _NUMBER.fullmatch(found)
    value = Decimal(found.replace(",", ".")) if is_number else Decimal("NaN")
    if not value.is_finite():
        raise UsageError(
            f"{where}: {name} is {(text or '')[:_LONGEST_NUMBER]!r}, not a number; "
            "leave the line out where nothing was measured"
        )
    if value and value.adjusted() > _LARGEST_EXPONENT:
        raise UsageError(f"{where}: {name} is {found}: no sensor reads that; is the column in volts and amperes?")
    return value if not value or value.adjusted() > -_LONGEST_NUMBER else Decimal(0)
