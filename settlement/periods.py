"""Periods: a month, or a single day; they begin and end at UTC midnights."""

import re
from datetime import UTC, date, datetime, timedelta

from maxgreen.errors import UsageError


def period_bounds(period: str) -> tuple[int, int]:
    """Return a period's begin and end in unix s; UsageError when it is neither YYYY-MM nor YYYY-MM-DD."""
    try:
        if re.fullmatch(r"\d{4}-\d{2}", period):
            first = date.fromisoformat(f"{period}-01")
            last = date(first.year + first.month // 12, first.month % 12 + 1, 1)
        elif re.fullmatch(r"\d{4}-\d{2}-\d{2}", period):
            first = date.fromisoformat(period)
            last = first + timedelta(days=1)
        else:
            raise ValueError  # noqa: TRY301 - one sentence for every mistake
    except ValueError as error:
        raise UsageError(f"period {period!r}: expected a month like 2026-10, or a day like 2026-10-31") from error
    return _midnight(first), _midnight(last)


def months_of(from_ms: int, to_ms: int) -> list[str]:
    """Return the months that a span of time touches, as YYYY-MM."""
    first, last = (datetime.fromtimestamp(t / 1000, UTC) for t in (from_ms, to_ms))
    months = []
    year, month = first.year, first.month
    while (year, month) <= (last.year, last.month):
        months.append(f"{year:04}-{month:02}")
        year, month = year + month // 12, month % 12 + 1
    return months


def day_of(unix_s: int) -> str:
    """Return the day that holds a time, as YYYY-MM-DD."""
    return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d}"


def month_before(t_ms: int) -> str:
    """Return the month before the one that holds a time, as YYYY-MM."""
    first = datetime.fromtimestamp(t_ms / 1000, UTC).replace(day=1)
    return f"{first - timedelta(days=1):%Y-%m}"


def _midnight(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
