"""Measured traces: CSV or JSON lines with ts_utc, channel, v_bus_V, i_A, checked line by line."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from statistics import median
from typing import Final

from edge_agent.sensors.base import Electrical
from maxgreen.errors import UsageError
from maxgreen.protocol.batch import MAX_INTERVAL_MS

COLUMNS: Final = ("ts_utc", "channel", "v_bus_V", "i_A")
MAX_VOLTAGE_UV: Final = 26_000_000
MAX_CURRENT_UA: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class TracePoint:
    """One reading of a trace; ms since the epoch."""

    t_ms: int
    reading: Electrical


@dataclass(frozen=True)
class Trace:
    """A trace's channels, each ascending in time."""

    path: Path
    channels: Mapping[str, tuple[TracePoint, ...]]

    def channel(self, name: str | None) -> tuple[TracePoint, ...]:
        """Return a channel by name, or the first; UsageError names those that there are."""
        if name is None:
            return next(iter(self.channels.values()))
        if name not in self.channels:
            known = ", ".join(list(self.channels)[:8])
            raise UsageError(f"{self.path}: no channel {name!r}; it has: {known}")
        return self.channels[name]


def read_trace(path: Path) -> Trace:
    """Read a trace, CSV or (.jsonl, .ndjson) JSON lines; UsageError names file, line and cure."""
    channels: dict[str, list[TracePoint]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = _json_rows(file, path) if path.suffix in {".jsonl", ".ndjson"} else _csv_rows(file, path)
            for where, row in rows:
                points = channels.setdefault(row["channel"] or "", [])
                point = TracePoint(_time(row["ts_utc"], where), _electrical(row, where))
                if points and point.t_ms <= points[-1].t_ms:
                    raise UsageError(
                        f"{where}: time {row['ts_utc']} is not after the one before; sort the trace by time"
                    )
                points.append(point)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; name a CSV or JSON lines file with --trace") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: not a CSV or JSON lines file: {error}") from error
    if not channels:
        raise UsageError(f"{path}: no samples in it; name another trace")
    return Trace(path, {name: tuple(points) for name, points in channels.items()})


Row = Mapping[str, str | None]


def _csv_rows(file: Iterable[str], path: Path) -> Iterator[tuple[str, Row]]:
    rows = csv.DictReader(file)
    if rows.fieldnames is None:
        raise UsageError(f"{path}: empty; expected a CSV with the columns {', '.join(COLUMNS)}")
    if missing := [name for name in COLUMNS if name not in rows.fieldnames]:
        raise UsageError(f"{path} line 1: no column {missing[0]}; expected {', '.join(COLUMNS)}")
    for row in rows:
        yield f"{path} line {rows.line_num}", row


def _json_rows(file: Iterable[str], path: Path) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(file, 1):
        where = f"{path} line {number}"
        try:
            value = json.loads(line, parse_float=str, parse_int=str)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where}: not a JSON object: {error}") from error
        if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in COLUMNS):
            raise UsageError(f"{where}: expected an object with {', '.join(COLUMNS)}")
        yield where, value


def interval_of(points: tuple[TracePoint, ...]) -> int:
    """Return the nominal sampling interval of a channel: the median step, ms."""
    steps = [later.t_ms - earlier.t_ms for earlier, later in zip(points, points[1:], strict=False)]
    return min(MAX_INTERVAL_MS, int(median(steps))) if steps else 1_000


def _time(text: str | None, where: str) -> int:
    time: datetime | None
    try:
        time = datetime.fromisoformat(text or "")
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise UsageError(f"{where}: time {text!r}: expected UTC like 2015-11-11T07:00:00Z")
    if time.astimezone(UTC) < datetime(1970, 1, 2, tzinfo=UTC):
        raise UsageError(f"{where}: time {text!r} is before 1970")
    return round(time.timestamp() * 1000)


def _electrical(row: Mapping[str, str | None], where: str) -> Electrical:
    voltage_uv = _micro(row["v_bus_V"], "v_bus_V", where)
    current_ua = _micro(row["i_A"], "i_A", where)
    if not 0 <= voltage_uv <= MAX_VOLTAGE_UV:
        raise UsageError(
            f"{where}: voltage {voltage_uv / 1e6:g} V is outside the INA219's 0-26 V; "
            "scale the trace or use an INA228 (docs/sensors.md)"
        )
    if abs(current_ua) > MAX_CURRENT_UA:
        raise UsageError(f"{where}: current {current_ua / 1e6:g} A is outside ±2147 A; is the column in amperes?")
    return Electrical(voltage_uv, current_ua)


def _micro(text: str | None, name: str, where: str) -> int:
    try:
        value = Decimal(text or "")
    except InvalidOperation:
        value = Decimal("NaN")
    if not value.is_finite():
        raise UsageError(f"{where}: {name} is {text!r}, not a number; leave the line out where nothing was measured")
    return int((value * 1_000_000).to_integral_value())
