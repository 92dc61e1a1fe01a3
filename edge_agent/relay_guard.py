"""The guard of the line to the storage node: one relay, one transfer, opened by the first thing that goes wrong.

It has a thread of its own that touches neither medium nor network, so that a card that hangs in a write, or a broker
that does not answer, never keeps the relay closed. Readings come from the sampling thread, stop commands from the
connection's thread; what happened is handed to the agent, which writes it into the chain when the medium lets it.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from edge_agent.board.base import Board, NoBoard
from edge_agent.draft import Happening
from edge_agent.light import Pattern
from edge_agent.source import Tick
from edge_agent.transfer import Transfer
from maxgreen.protocol.batch import Birth, EventKind

TRANSFER_INTERVAL_MS: Final = 1_000  # while a transfer runs the line is read at least so often
_BLIND_MS: Final = 5 * TRANSFER_INTERVAL_MS
_CHECK_S: Final = 0.05
_LOG: Final = logging.getLogger(__name__)


class RelayGuard:
    """Owns the board; every method may be called from any thread."""

    def __init__(
        self,
        board: Board,
        channel: int,
        birth: Birth,
        boot_ms: Callable[[], int],
        *,
        alive: Callable[[bool], None] = lambda _transferring: None,
    ) -> None:
        """`channel` meters the line; `alive(whether a transfer runs)` is called at each look of the guard's thread."""
        self._board = board
        self._channel = channel
        self._sensor = birth.sensor(channel)
        self._boot_ms = boot_ms
        self._alive = alive
        self._lock = threading.RLock()
        self._transfer: Transfer | None = None
        self._read_ms: int | None = None  # boot time of the line's newest reading
        self._interval_ms = TRANSFER_INTERVAL_MS
        self._tamper_open: bool | None = None
        self._pattern = Pattern.FINE
        self._happened: deque[Happening] = deque(maxlen=1_000)
        self.fault = ""  # why the pins can't be used; empty when they can
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def start(self) -> None:
        """Begin to watch by itself, where something is wired."""
        if not isinstance(self._board, NoBoard):
            self._thread.start()

    def close(self) -> None:
        """Open the relay, end the transfer, give the pins back."""
        self.stop("the agent stops")
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        with self._lock:
            self._board.release()

    @property
    def transfer(self) -> Transfer | None:
        """The transfer that runs."""
        return self._transfer

    @property
    def tamper_open(self) -> bool | None:
        """Whether the case is open; None when nobody knows."""
        return self._tamper_open

    def show(self, pattern: Pattern) -> None:
        """Let the light say something else."""
        self._pattern = pattern

    def refusal(self, channel: int, boot_ms: int) -> str | None:
        """Return why no transfer can begin on a channel, None when one can."""
        with self._lock:
            if not self._board.has_relay:
                return "no relay is wired ([board] relay_pin)"
            if channel != self._channel:
                return f"the relay's line is channel {self._channel}, not {channel}"
            if self._sensor is None:
                return f"channel {channel} is not metered"
            if self._board.tamper_open():
                return "the case is open"
            # before a transfer the line may be read less often
            if self._read_ms is None or boot_ms - self._read_ms > max(3 * self._interval_ms, _BLIND_MS):
                return "the line's sensor gives no readings"
        return None

    def begin(self, command: int, *, most_ms: int, most_mws: int) -> str | None:
        """Close the relay for a transfer (one that runs ends first); return why not, None when it did."""
        with self._lock:
            boot_ms = self._boot_ms()
            self.stop("another transfer begins", command)
            if refused := self.refusal(self._channel, boot_ms):
                return refused
            self._transfer = Transfer(self._channel, command, boot_ms, most_ms, most_mws)
            self._read_ms = boot_ms  # the next reading is due within a second from here
            self._happened.append(Happening(EventKind.TRANSFER_START, boot_ms, command))
            self._board.connect(line=True)
        _LOG.info("transfer %d begins: at most %d s, %.3f Wh", command, most_ms / 1000, most_mws / 3.6e6)
        return None

    def stop(self, reason: str, command: int | None = None) -> None:
        """Open the relay, whatever runs; the transfer ends with its event."""
        with self._lock:
            self._board.connect(line=False)
            ended, self._transfer = self._transfer, None
            if ended is None:
                return
            number = ended.command if command is None else command
            self._happened.append(Happening(EventKind.TRANSFER_STOP, self._boot_ms(), number))
        _LOG.info("transfer %d ends: %s", ended.command, reason)

    def measured(self, tick: Tick, interval_ms: int) -> None:
        """Meter the transfer; a reading that fails ends it, since nobody would know what flows."""
        with self._lock:
            self._interval_ms = interval_ms
            sample = tick.samples.get(self._channel)
            if sample is not None:
                self._read_ms = tick.boot_ms
            elif self._channel in tick.faults:
                self._read_ms = None
            if self._transfer is None:
                return
            if sample is not None and self._sensor is not None:
                self._transfer = self._transfer.metered(
                    sample, interval_ms=interval_ms, dead_band_ua=self._sensor.dead_band_ua
                )
            self.check(tick.boot_ms)

    def check(self, boot_ms: int | None = None) -> None:
        """Open at the first limit reached, when nobody knows what flows, and when the case is opened."""
        with self._lock:
            boot_ms = self._boot_ms() if boot_ms is None else boot_ms
            was_open, self._tamper_open = self._tamper_open, self._board.tamper_open()
            if self._tamper_open and not was_open:
                self.stop("the case was opened")
                self._happened.append(Happening(EventKind.TAMPER, boot_ms))
                _LOG.warning("the case was opened")
            if self._transfer is None:
                return
            if reason := self._transfer.limit_reached(boot_ms):
                self.stop(reason)
            elif self._read_ms is None or boot_ms - self._read_ms > _BLIND_MS:
                self.stop("the line's sensor gives no readings")

    def happened(self) -> list[Happening]:
        """Return what happened since the last call."""
        with self._lock:
            found = list(self._happened)
            self._happened.clear()
        return found

    def _run(self) -> None:
        while not self._stopping.wait(_CHECK_S):
            self._look()
            self._alive(self._transfer is not None)

    def _look(self) -> None:
        try:
            self.check()
            with self._lock:
                self._board.light(on=self._pattern.lit(time.monotonic_ns() // 10**6))
        except Exception as error:  # noqa: BLE001 - pins that fail must not end their guard
            if not self.fault:
                _LOG.error("board: %s", error)
            self.fault = str(error) or type(error).__name__
            with suppress(Exception):
                self.stop("the board fails")
        else:
            self.fault = ""
