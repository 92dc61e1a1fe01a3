"""Time behind one interface, so that a month can run in seconds."""

import fcntl
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from maxgreen.errors import Retryable


class Clock(Protocol):
    """Wall time in ms since the Unix epoch."""

    def now_ms(self) -> int:
        """Return the time."""
        ...

    def sleep_until(self, t_ms: int) -> None:
        """Return when the time is at least `t_ms`."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now_ms(self) -> int:
        """Return the time."""
        return time.time_ns() // 1_000_000

    def sleep_until(self, t_ms: int) -> None:
        """Sleep until then."""
        while (left_ms := t_ms - self.now_ms()) > 0:
            time.sleep(min(left_ms / 1000, 60))


class FileClock:
    """A clock that stands until somebody moves it; processes share it through a file.

    For demos and tests: sleeping moves the clock instead of waiting.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def now_ms(self) -> int:
        """Return the time in the file."""
        try:
            return int(self._path.read_text())
        except (OSError, ValueError) as error:
            raise Retryable(f"clock file {self._path}: {error}") from error

    def sleep_until(self, t_ms: int) -> None:
        """Move the clock to `t_ms`, never back."""
        with self._path.with_name(f".{self._path.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self._path.exists() or t_ms > self.now_ms():
                fresh = self._path.with_name(f".{self._path.name}.new")
                fresh.write_text(str(t_ms))
                fresh.replace(self._path)


def utc(t_ms: int) -> str:
    """Return a time in ms since the epoch as people write it, in UTC."""
    return datetime.fromtimestamp(t_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def make_clock(file: Path | None) -> Clock:
    """Return the clock that settings ask for: a file's, or the system's."""
    return FileClock(file) if file else SystemClock()
