"""Which signed commands a device obeys, and how (P-CMD-1)."""

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from edge_agent.relay_guard import RelayGuard
from edge_agent.spool import MediumError, Spool
from maxgreen.clock import Clock
from maxgreen.protocol.backend import BackendKeys, Command, CommandKind
from maxgreen.protocol.batch import MAX_INTERVAL_MS
from maxgreen.protocol.reasons import Rejected

MIN_INTERVAL_MS: Final = 10
_MOST_HEARD: Final = 16
_MAX_NUMBER: Final = 2**63 - 1  # the largest that the spool holds
_LOG: Final = logging.getLogger(__name__)


def refusal(command: Command, *, device: bytes, last_number: int, now_ms: int, synchronised: bool) -> str | None:
    """Return why a command is not obeyed, None when it is; `last_number` is the newest one obeyed, -1 for none.

    A signed stop is obeyed whenever and however often it comes: an open relay harms nobody.
    """
    if command.device != device:
        return "it is for another device"
    if command.kind is CommandKind.STOP_TRANSFER:
        return None
    if not synchronised:
        return "this device's clock is not synchronised"
    if command.number > _MAX_NUMBER:
        return f"number {command.number} is too large"
    if command.number <= last_number:
        return f"number {last_number} was obeyed already"
    if now_ms >= command.expires_ms:
        return f"it expired {(now_ms - command.expires_ms) / 1000:.0f} s ago"
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
    ) -> None:
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
        self._heard.setdefault(command.number, self._guard.stops)
        refused = self._refusal(command, self._spool.obeyed()) or self._impossible(command)
        if refused is None and command.kind is CommandKind.STOP_TRANSFER:
            self._guard.stop("a command", _event_number(command))  # before it is noted: doing it twice does no harm
        if refused is None:
            refused = self._note(command)
        if refused is None:
            refused = self._carry_out(command)
        if refused is not None:
            _LOG.warning("command %d is not obeyed: %s", command.number, refused)

    def _refusal(self, command: Command, last_number: int) -> str | None:
        return refusal(
            command,
            device=self._device,
            last_number=last_number,
            now_ms=self._clock.now_ms(),
            synchronised=self._is_dated(),
        )

    def _impossible(self, command: Command) -> str | None:
        if command.kind is CommandKind.START_TRANSFER:
            return self._guard.refusal(command.arguments[0], self._boot_ms())
        if command.kind is CommandKind.SAMPLING_INTERVAL:
            interval_ms = command.arguments[0]
            if not MIN_INTERVAL_MS <= interval_ms <= MAX_INTERVAL_MS:
                return f"an interval of {interval_ms} ms is outside {MIN_INTERVAL_MS} to {MAX_INTERVAL_MS}"
        return None

    def _note(self, command: Command) -> str | None:
        """Note that it was obeyed: without a note a restart would obey it again."""
        if command.number <= self._spool.obeyed() or command.number > _MAX_NUMBER:
            return None  # a stop that came again
        try:
            self._spool.obey(command.number)
        except MediumError as error:
            return None if command.kind is CommandKind.STOP_TRANSFER else str(error)
        return None

    def _carry_out(self, command: Command) -> str | None:
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
