"""The line to the storage node: one relay, at most one transfer, opened by the first thing that goes wrong."""

import logging
from collections.abc import Callable
from typing import Final

from edge_agent.board.base import Board
from edge_agent.source import Tick
from edge_agent.transfer import Transfer
from maxgreen.protocol.backend import Command, CommandKind
from maxgreen.protocol.batch import Birth, EventKind

_LOG: Final = logging.getLogger(__name__)
_BLIND_MS: Final = 10_000
Note = Callable[[EventKind, int, int | None], None]


class Line:
    """Obeys transfer commands; `note(kind, boot ms, command)` writes their events into the chain."""

    def __init__(self, board: Board, channel: int, birth: Birth, note: Note) -> None:
        self._board = board
        self._channel = channel
        self._birth = birth
        self._note = note
        self.transfer: Transfer | None = None
        self._sampled_ms: int | None = None  # boot time of the line's newest reading
        self._interval_ms = 1_000

    def refusal(self, command: Command, boot_ms: int) -> str | None:
        """Return why a transfer command can't be met, None when it can."""
        if not self._board.has_relay:
            return "no relay is wired ([board] relay_pin)"
        if command.arguments[0] != self._channel:
            return f"the relay's line is channel {self._channel}, not {command.arguments[0]}"
        if command.kind is CommandKind.START_TRANSFER and self._birth.sensor(self._channel) is None:
            return f"channel {self._channel} is not metered"
        if command.kind is CommandKind.START_TRANSFER and self._is_blind(boot_ms):
            return "the line's sensor gives no readings"
        return None

    def obey(self, command: Command, boot_ms: int) -> None:
        """Start or stop a transfer; a start while one runs ends that one first."""
        self.open("a command", boot_ms, command.number)
        if command.kind is not CommandKind.START_TRANSFER:
            return
        channel, most_s, most_mws = (command.arguments[key] for key in (0, 1, 2))
        self.transfer = Transfer(channel, command.number, boot_ms, most_s * 1000, most_mws)
        self._note(EventKind.TRANSFER_START, boot_ms, command.number)
        self._board.connect(line=True)
        _LOG.info("transfer %d begins: at most %d s, %.3f Wh", command.number, most_s, most_mws / 3.6e6)

    def take(self, tick: Tick, interval_ms: int) -> None:
        """Meter the transfer; a reading that fails ends it, since nobody would know what flows."""
        self._interval_ms = interval_ms
        if self._channel in tick.samples:
            self._sampled_ms = tick.boot_ms
        elif self._channel in tick.faults:
            self._sampled_ms = None
        if self.transfer is None:
            return
        sample, sensor = tick.samples.get(self._channel), self._birth.sensor(self._channel)
        if sample is not None and sensor is not None:
            self.transfer = self.transfer.metered(sample, interval_ms=interval_ms, dead_band_ua=sensor.dead_band_ua)
        self.check(tick.boot_ms)

    def check(self, boot_ms: int) -> None:
        """Open at the first limit reached, backend or not (P-CMD-1), and when nobody knows what flows."""
        if self.transfer is None:
            return
        if reason := self.transfer.limit_reached(boot_ms):
            self.open(reason, boot_ms)
        elif self._is_blind(boot_ms):
            self.open("the line's sensor gives no readings", boot_ms)

    def _is_blind(self, boot_ms: int) -> bool:
        return self._sampled_ms is None or boot_ms - self._sampled_ms > max(3 * self._interval_ms, _BLIND_MS)

    def open(self, reason: str, boot_ms: int, command: int | None = None) -> None:
        """Open the relay, whatever runs; end the transfer with its event and attestations."""
        self._board.connect(line=False)
        if self.transfer is None:
            return
        number = self.transfer.command if command is None else command
        _LOG.info("transfer %d ends: %s", self.transfer.command, reason)
        self.transfer = None
        self._note(EventKind.TRANSFER_STOP, boot_ms, number)
