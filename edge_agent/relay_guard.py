"""The guard of the line to the storage node: one relay, one transfer, opened by the first thing that goes wrong.

It has a thread of its own that touches neither medium nor network, so that a card that hangs in a write, or a broker
that does not answer, never keeps the relay closed. Readings come from the sampling thread, stop commands from the
connection's thread; what happened is handed to the agent, which writes it into the chain when the medium lets it.
No method raises for what pins do: a relay that could not be opened is opened again and again.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple

from edge_agent.board.base import Board, NoBoard
from edge_agent.draft import Happening
from edge_agent.light import Pattern
from edge_agent.source import Tick
from edge_agent.transfer import Transfer
from maxgreen.protocol.batch import Birth, EventKind
from maxgreen.protocol.reasons import Refusal

TRANSFER_INTERVAL_MS: Final = 1_000  # while a transfer runs the line is read at least so often
_BLIND_MS: Final = 2 * TRANSFER_INTERVAL_MS
_CHECK_S: Final = 0.05
_UNATTENDED_S: Final = 60.0  # an agent whose main loop hangs for so long sends no energy
_CASE_SETTLES_MS: Final = 1_000  # a switch that bounces is open
_LOG: Final = logging.getLogger(__name__)


class Refused(NamedTuple):
    """Why something is not done, for the backend and in words."""

    reason: Refusal
    text: str


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
        stopping: threading.Event | None = None,
    ) -> None:
        """`channel` meters the line; `alive(whether a transfer runs)` is called at each look of the guard's thread.

        Once `stopping` is set nothing closes any more.
        """
        self._board = board
        self._channel = channel
        self._sensor = birth.sensor(channel)
        self._boot_ms = boot_ms
        self._alive = alive
        self._lock = threading.RLock()
        self._transfer: Transfer | None = None
        self._must_open = False  # the pin did not take it yet
        self._stops = 0
        self._read_ms: int | None = None  # boot time of the line's newest reading
        self._interval_ms = TRANSFER_INTERVAL_MS
        self._tamper_open: bool | None = None
        self._tamper_ms = 0
        self._attended_s = time.monotonic()
        self._pattern = Pattern.FINE
        self._happened: deque[Happening] = deque(maxlen=1_000)
        self.fault = ""  # why the pins can't be used; empty when they can
        self._stopping = threading.Event() if stopping is None else stopping
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def start(self) -> None:
        """Begin to watch by itself, where something is wired."""
        if not isinstance(self._board, NoBoard):
            self._thread.start()

    def close(self) -> None:
        """Open the relay, end the transfer, give the pins back."""
        self.stop("the agent stops")
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        with self._lock, self._pins():
            self._board.release()
        self._alive(False)

    @property
    def transfer(self) -> Transfer | None:
        """The transfer that runs."""
        return self._transfer

    @property
    def tamper_open(self) -> bool | None:
        """Whether the case is open; None when nobody knows."""
        return self._tamper_open

    @property
    def stops(self) -> int:
        """How often somebody wanted the relay open; a start that was asked for before the last one is void."""
        return self._stops

    def show(self, pattern: Pattern) -> None:
        """Let the light say something else."""
        self._pattern = pattern

    def attended(self) -> None:
        """Tell that the agent's main loop goes on."""
        self._attended_s = time.monotonic()

    def refusal(self, channel: int, boot_ms: int) -> Refused | None:
        """Return why no transfer can begin on a channel, None when one can."""
        with self._lock:
            self._look_at_case(boot_ms)
            if not self._board.has_relay:
                return Refused(Refusal.NO_RELAY, "no relay is wired ([board] relay_pin)")
            if channel != self._channel:
                return Refused(Refusal.OTHER_CHANNEL, f"the relay's line is channel {self._channel}, not {channel}")
            if self._sensor is None:
                return Refused(Refusal.OTHER_CHANNEL, f"channel {channel} is not metered")
            if self._stopping.is_set():
                return Refused(Refusal.STOPPED, "the agent stops")
            if self.fault or self._must_open:
                return Refused(Refusal.BOARD_FAULT, f"the board fails: {self.fault}")
            if self._tamper_open:
                return Refused(Refusal.CASE_OPEN, "the case is open")
            # before a transfer the line may be read less often
            if self._read_ms is None or boot_ms - self._read_ms > max(2 * self._interval_ms, _BLIND_MS):
                return Refused(Refusal.NO_READING, "the line's sensor gives no readings")
        return None

    def begin(
        self,
        command: int,
        *,
        most_ms: int,
        most_mws: int,
        stops: int | None = None,
        void: Callable[[], Refused | None] = lambda: None,
    ) -> Refused | None:
        """Close the relay for a transfer (one that runs ends first); return why not, None when it did.

        `stops`: how many stops there were when the command came; `void` says whether it may still be obeyed.
        """
        with self._lock:
            if stops is not None and self._stops != stops:
                return Refused(Refusal.STOPPED, "a stop came in between")
            self._end("another transfer begins", command)
            boot_ms = self._boot_ms()
            if refused := void() or self.refusal(self._channel, boot_ms):
                return refused
            self._transfer = Transfer(self._channel, command, boot_ms, most_ms, most_mws)
            self._read_ms = boot_ms  # the next reading is due within a second from here
            self._attended_s = time.monotonic()
            with self._pins():
                self._board.connect(line=True)
            if self.fault:
                self._end("the board fails")
                return Refused(Refusal.BOARD_FAULT, f"the board fails: {self.fault}")
            self._happened.append(Happening(EventKind.TRANSFER_START, boot_ms, command))
        _LOG.info("transfer %d begins: at most %d s, %.3f Wh", command, most_ms / 1000, most_mws / 3.6e6)
        return None

    def stop(self, reason: str, command: int | None = None) -> None:
        """Open the relay, whatever runs; the transfer ends with its event."""
        with self._lock:
            self._stops += 1
            self._end(reason, command)

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
            self._look_at_case(boot_ms)
            if self._must_open:
                self._open()
            if self._transfer is None:
                return
            if self._stopping.is_set():
                self._end("the agent stops")
            elif self.fault:
                self._end("the board fails")
            elif reason := self._transfer.limit_reached(boot_ms):
                self._end(reason)
            elif self._read_ms is None or boot_ms - self._read_ms > _BLIND_MS:
                self._end("the line's sensor gives no readings")
            elif time.monotonic() - self._attended_s > _UNATTENDED_S:
                self._end("the agent hangs")

    def happened(self) -> list[Happening]:
        """Return what happened since the last call."""
        with self._lock:
            found = list(self._happened)
            self._happened.clear()
        return found

    def _end(self, reason: str, command: int | None = None) -> None:
        ended, self._transfer = self._transfer, None
        if ended is not None:
            number = ended.command if command is None else command
            self._happened.append(Happening(EventKind.TRANSFER_STOP, self._boot_ms(), number))
        self._open()
        if ended is not None:
            _LOG.info("transfer %d ends: %s", ended.command, reason)

    def _open(self) -> None:
        self._must_open = True
        with self._pins():
            self._board.connect(line=False)
            self._must_open = False

    def _look_at_case(self, boot_ms: int) -> None:
        was_open = self._tamper_open
        with self._pins():
            is_open = self._board.tamper_open()
            self.fault = ""
            if is_open:
                self._tamper_ms = boot_ms
            elif was_open and boot_ms - self._tamper_ms < _CASE_SETTLES_MS:
                is_open = True
            self._tamper_open = is_open
        if self._tamper_open and not was_open:
            self._end("the case was opened")
            self._happened.append(Happening(EventKind.TAMPER, boot_ms))
            _LOG.warning("the case was opened")

    def _pins(self) -> "_Pins":
        return _Pins(self)

    def _run(self) -> None:
        while not self._ended.wait(_CHECK_S):
            self.check()
            with self._lock, self._pins():
                self._board.light(on=self._pattern.lit(time.monotonic_ns() // 10**6))
            with suppress(Exception):
                self._alive(self._transfer is not None)


class _Pins:
    """What pins do wrong is a fault of the guard, said once; it ends nobody."""

    def __init__(self, guard: RelayGuard) -> None:
        self._guard = guard

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if error is None or not isinstance(error, Exception):
            return False
        before, self._guard.fault = self._guard.fault, str(error) or type(error).__name__
        if not before:
            _LOG.error("board: %s", self._guard.fault)
        return True
