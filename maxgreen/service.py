"""What every service does alike: systemd's notifications, log format."""

import logging
import os
import socket
import time
from typing import Final

from maxgreen.errors import Fatal
from native import kernels

_HEARTBEAT_S: Final = 10.0


def notify(state: str) -> None:
    """Tell systemd (sd_notify(3)); without NOTIFY_SOCKET it does nothing."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect("\0" + address[1:] if address.startswith("@") else address)
        channel.sendall(state.encode())


class Heartbeat:
    """Tells systemd of progress: ready at the first call, then alive, at most once in ten seconds (sd_notify(3))."""

    def __init__(self) -> None:
        self._due_s: float | None = None

    def __call__(self) -> None:
        """Tell it, when it is time."""
        now_s = time.monotonic()
        if self._due_s is None:
            notify("READY=1")
        elif now_s < self._due_s:
            return
        notify("WATCHDOG=1")
        self._due_s = now_s + _HEARTBEAT_S


def scrypt_kernel() -> str:
    """Return the scrypt kernel that this process uses; Fatal when the forced one can't be used."""
    try:
        return kernels.chosen()
    except ValueError as error:
        raise Fatal(f"{kernels.KERNEL_VARIABLE}: {error}; 'maxgreen selftest scrypt' lists them") from error


def log_to_stderr() -> None:
    """One line per event on stderr; journald takes the time."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
