"""What every service does alike: systemd's notifications, log format."""

import atexit
import errno
import gc
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from logging.handlers import QueueHandler, QueueListener
from typing import Any, Final, TypeVar

from maxgreen.errors import Fatal, Retryable
from native import kernels

T = TypeVar("T")

_AGAIN_S: Final = 2.0
_BACKLOG: Final = 2_048
_TO_COME: Final = {errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EMFILE, errno.ENOBUFS}
_PATIENCE_US: Final = 60_000_000
_LOG: Final = logging.getLogger(__name__)
_HEARTBEAT_S: Final = 10.0
_STUCK_S: Final = 180.0  # WatchdogSec of the units
_GUARDED_S: Final = 10.0  # the watchdog's time while a transfer runs
_GUARDED_BEAT_S: Final = 2.0
_MOST_LINES: Final = 10_000
_COLLECT_AFTER: Final = 50_000
_said: set[str] = set()


def notify(state: str) -> None:
    """Tell systemd (sd_notify(3)); without NOTIFY_SOCKET it does nothing, and a socket that is away is said once."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.setblocking(False)  # whoever tells must not hang where nobody reads
            channel.connect("\0" + address[1:] if address.startswith("@") else address)
            channel.sendall(state.encode())
    except BlockingIOError:
        pass
    except OSError as error:
        if address not in _said:
            _said.add(address)
            _LOG.warning("systemd does not hear us at %s: %s", address, error)


def patiently(step: Callable[[], T]) -> T:
    """Return what a step returns, however long what it needs is away; it is said once, and systemd waits with us."""
    said = ""
    while True:
        try:
            return step()
        except Retryable as error:
            if str(error) != said:
                said = str(error)
                notify(f"STATUS=waiting: {said}")
                _LOG.warning("waiting: %s", said)
            notify(f"EXTEND_TIMEOUT_USEC={_PATIENCE_US}")
            time.sleep(_AGAIN_S)


def listen(host: str, port: int, whose: str) -> socket.socket:
    """Return a socket that listens there, 0 for any port; `whose` is the setting that names it.

    Retryable where the port is taken, or the address is one to come; Fatal where no waiting helps.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        text = f"cannot listen at {host}:{port} ({whose}): {error.strerror or error}"
        if error.errno in _TO_COME:
            raise Retryable(text) from error
        raise Fatal(text) from error


def collect_seldom() -> None:
    """Let the cycle collector look seldom: a group makes many small objects, none of them in a circle."""
    gc.freeze()  # what is loaded stays
    gc.set_threshold(_COLLECT_AFTER)


class Heartbeat:
    """Tells systemd of progress: ready at the first call, then alive, at most once in ten seconds (sd_notify(3)).

    While a transfer runs the watchdog's time is ten seconds: `guarded` feeds it, as long as there is progress too, so
    that a process that is stopped altogether is killed, and its relay opened, within that time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._due_s: float | None = None
        self._progress_s = time.monotonic()
        self._guarding = False
        self._usual_us = os.environ.get("WATCHDOG_USEC", "")

    def __call__(self) -> None:
        """Tell of progress, when it is time."""
        with self._lock:
            now_s = self._progress_s = time.monotonic()
            if self._due_s is None:
                notify("READY=1")
            elif now_s < self._due_s:
                return
            self._beat(now_s)

    def guarded(self, transferring: bool) -> None:
        """Keep the watchdog's time short while a transfer runs; the relay's guard calls it many times a second."""
        if not transferring and not self._guarding:
            return
        with self._lock:
            now_s = time.monotonic()
            if transferring != self._guarding and self._usual_us:
                usec = f"{_GUARDED_S * 1e6:.0f}" if transferring else self._usual_us
                notify(f"WATCHDOG_USEC={usec}")
                self._due_s = now_s
            self._guarding = transferring
            if (self._due_s is None or now_s >= self._due_s) and now_s - self._progress_s < _STUCK_S:
                self._beat(now_s)

    def _beat(self, now_s: float) -> None:
        notify("WATCHDOG=1")
        self._due_s = now_s + (_GUARDED_BEAT_S if self._guarding else _HEARTBEAT_S)


def scrypt_kernel() -> str:
    """Return the scrypt kernel that this process uses; Fatal when the forced one can't be used."""
    try:
        return kernels.chosen()
    except ValueError as error:
        raise Fatal(f"{kernels.KERNEL_VARIABLE}: {error}; 'maxgreen selftest scrypt' lists them") from error


def log_to_stderr() -> None:
    """One line per event on stderr, written by a thread of its own; journald takes the time."""
    stderr = logging.StreamHandler()
    stderr.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    waiting: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    listener = QueueListener(waiting, stderr)
    handler = _Bounded(waiting)
    handler.setFormatter(logging.Formatter("%(message)s"))  # the rest is the listener's
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("alembic").setLevel(logging.WARNING)  # what it does to a ledger is no news each time
    listener.start()
    atexit.register(listener.stop)


class _Bounded(QueueHandler):
    """Drops lines that nobody takes: a stuck journal must neither stop a service nor fill its memory."""

    def enqueue(self, record: logging.LogRecord) -> None:
        waiting: Any = self.queue
        if waiting.qsize() < _MOST_LINES:
            waiting.put_nowait(record)
