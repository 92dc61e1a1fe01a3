"""Which signed commands a device obeys, and how (P-CMD-1)."""

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from edge_agent.relay_guard import Refused, RelayGuard
from edge_agent.spool import MediumError, Spool
from maxgreen.clock import Clock
from maxgreen.protocol.backend import BackendKeys, Command, CommandKind
from maxgreen.protocol.batch import MAX_INTERVAL_MS, EventKind
from maxgreen.protocol.reasons import Refusal, Rejected

MIN_INTERVAL_MS: Final = 10
_MOST_HEARD: Final = 16
_MOST_FATES: Final = 1_024  # remembered, so that a command that comes again and again is told of once
_MAX_NUMBER: Final = 2**63 - 1  # the largest that the spool holds
_LOG: Final = logging.getLogger(__name__)


def refusal(command: Command, *, last_number: int, now_ms: int, synchronised: bool) -> Refused | None:
    """Return why a command is not obeyed, None when it is; `last_number` is the newest one obeyed, -1 for none.

    A signed stop is obeyed whenever and however often it comes: an open relay harms nobody.
    """
    if command.kind is CommandKind.STOP_TRANSFER:
        return None
    if not synchronised:
        return Refused(Refusal.UNSYNCHRONISED, "this device's clock is not synchronised")
    if command.number > _MAX_NUMBER:
        return Refused(Refusal.OUT_OF_BOUNDS, f"number {command.number} is too large")
    if command.number <= last_number:
        return Refused(Refusal.OUT_OF_ORDER, f"number {last_number} was obeyed already")
    if now_ms >= command.expires_ms:
        return Refused(Refusal.EXPIRED, f"it expired {(now_ms - command.expires_ms) / 1000:.0f} s ago")
    return None


def _event_number(command: Command) -> int | None:
    """Return the number as an event can carry it (P-BAT-8); None stands for the transfer's own."""
    return command.number if command.number <= _MAX_NUMBER else None


class Obedience:
    """Obeys the commands of one device."""

    def __init__(
        self,
        device: bytes,
        keys: BackendKeys,
        spool: Spool,
        guard: RelayGuard,
        clock: Clock,
        *,
        boot_ms: Callable[[], int],
        before_transfer: Callable[[], None],
        state_birth: Callable[[], None],
        want_interval: Callable[[int], None],
        is_dated: Callable[[], bool],
        tell: Callable[[EventKind, int, Refusal | None], None],
    ) -> None:
        """`tell` puts the fate of a command into the next batch (P-CMD-2)."""
        self._device = device
        self._keys = keys
        self._spool = spool
        self._guard = guard
        self._clock = clock
        self._boot_ms = boot_ms
        self._before_transfer = before_transfer
        self._state_birth = state_birth
        self._want_interval = want_interval
        self._is_dated = is_dated
        self._tell = tell
        self._fates: OrderedDict[int, Refusal | None] = OrderedDict()  # told, by command
        self._heard: OrderedDict[int, int] = OrderedDict()  # start commands: stops that there were when it came

    def hear(self, payload: bytes) -> None:
        """Open the relay at once when the bytes are a signed stop; any thread may call it.

        A start is carried out later, by who reads in order; a stop that comes in between makes it void.
        """
        try:
            command = self._keys.open_command(payload)
        except Rejected:
            return  # whoever reads it in order says why
        if command.device != self._device:
            return
        if command.kind is CommandKind.STOP_TRANSFER:
            self._guard.stop("a command", _event_number(command))
        elif command.kind is CommandKind.START_TRANSFER:
            self._heard[command.number] = self._guard.stops
            while len(self._heard) > _MOST_HEARD:
                self._heard.popitem(last=False)

    def obey(self, command: Command) -> None:
        """Obey a command that its backend signed: once, in its time, in order."""
        if command.device != self._device:
            _LOG.warning("command %d is for another device", command.number)
            return
        if command.number in self._fates and self._fates[command.number] is None:
            if command.kind is CommandKind.STOP_TRANSFER:
                self._guard.stop("a command", _event_number(command))
            return  # it came again, as each does after a connection
        noted = self._spool.obeyed()
        again = command.number == noted or (command.number < noted and command.number in self._fates)
        if again and command.kind is not CommandKind.STOP_TRANSFER:
            return  # it was obeyed, or told of; what a power cut left untold stays so, and is not told wrongly
        if command.kind is CommandKind.START_TRANSFER:
            self._heard.setdefault(command.number, self._guard.stops)
        refused = self._refusal(command, noted) or self._impossible(command)
        if refused is None and command.kind is CommandKind.STOP_TRANSFER:
            self._guard.stop("a command", _event_number(command))  # before it is noted: doing it twice does no harm
        if refused is None:
            refused = self._note(command)
        if refused is None:
            refused = self._carry_out(command)
        self._state_fate(command, refused)

    def _state_fate(self, command: Command, refused: Refused | None) -> None:
        """Let the backend know, once: a command comes again after each connection."""
        number, reason = command.number, refused.reason if refused else None
        if number in self._fates and self._fates[number] is reason:
            return
        if refused is not None:
            _LOG.warning("command %d is not obeyed: %s", number, refused.text)
        self._fates[number] = reason
        while len(self._fates) > _MOST_FATES:
            self._fates.popitem(last=False)
        if number > _MAX_NUMBER:
            return  # no event can carry it (P-BAT-8)
        if reason is not None:
            self._tell(EventKind.COMMAND_REFUSED, number, reason)
        elif command.kind is not CommandKind.START_TRANSFER:  # the transfer's own event says so
            self._tell(EventKind.COMMAND_OBEYED, number, None)

    def _refusal(self, command: Command, last_number: int) -> Refused | None:
        return refusal(
            command,
            last_number=last_number,
            now_ms=self._clock.now_ms(),
            synchronised=self._is_dated(),
        )

    def _impossible(self, command: Command) -> Refused | None:
        if command.kind is CommandKind.START_TRANSFER:
            return self._guard.refusal(command.arguments[0], self._boot_ms())
        if command.kind is CommandKind.SAMPLING_INTERVAL:
            interval_ms = command.arguments[0]
            if not MIN_INTERVAL_MS <= interval_ms <= MAX_INTERVAL_MS:
                text = f"an interval of {interval_ms} ms is outside {MIN_INTERVAL_MS} to {MAX_INTERVAL_MS}"
                return Refused(Refusal.OUT_OF_BOUNDS, text)
        return None

    def _note(self, command: Command) -> Refused | None:
        """Note that it was obeyed: without a note a restart would obey it again."""
        if command.number <= self._spool.obeyed() or command.number > _MAX_NUMBER:
            return None  # a stop that came again
        try:
            self._spool.obey(command.number)
        except MediumError as error:
            return None if command.kind is CommandKind.STOP_TRANSFER else Refused(Refusal.MEDIUM, str(error))
        return None

    def _carry_out(self, command: Command) -> Refused | None:
        match command.kind:
            case CommandKind.START_TRANSFER:
                self._before_transfer()
                return self._guard.begin(
                    command.number,
                    most_ms=command.arguments[1] * 1000,
                    most_mws=command.arguments[2],
                    stops=self._heard.pop(command.number, None),
                    void=lambda: self._refusal(command, -1),  # the medium may have hung since
                )
            case CommandKind.SEND_REGISTERS:
                self._state_birth()
            case CommandKind.SAMPLING_INTERVAL:
                self._want_interval(command.arguments[0])
        return None
