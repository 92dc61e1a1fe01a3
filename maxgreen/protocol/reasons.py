"""Verdicts, reasons and remarks, by their numbers (P-ING-3, settlement)."""

from enum import IntEnum, StrEnum
from typing import Any, Final

from maxgreen.errors import MaxgreenError


class Reason(IntEnum):
    """Why a batch was rejected or held, or a window not counted; 0 is no reason."""

    NONE = 0
    OVERSIZE = 1
    MALFORMED = 2
    UNKNOWN_DEVICE = 3
    BAD_SIGNATURE = 4
    EQUIVOCATION = 5
    GAP_BEFORE = 6
    CHAIN_BREAK = 7
    TIME_OVERLAP = 8
    FUTURE_TIME = 9
    CLOCK_UNSYNCHRONISED = 10
    SUSPENDED_DEVICE = 11
    REGISTER_REGRESSION = 12
    REGISTER_MISMATCH = 13
    BAD_WORK = 14
    BAD_ATTESTATION = 15
    BIRTH_MISSING = 16
    INTERNAL_ERROR = 17
    CROSSES_WINDOW = 18
    WRONG_ROLE = 19
    WEAK_WORK = 20
    STALE_WORK = 21
    LATE_WORK = 22
    INCOMPLETE = 40
    OFFLINE_WINDOW = 41
    NOT_GENERATED = 42
    OVER_CAPACITY = 43
    AT_NIGHT = 44
    STUCK_SENSOR = 45
    RECEIVED_EXCEEDS_SENT = 46
    LOSS_EXCEEDS_LIMIT = 47
    TAKEN_OUT = 49
    SUSPENDED = 51
    BATCH_NOT_ACCEPTED = 52
    UNATTESTED = 53
    OVERFULL = 54
    UNMETERED = 55
    DATA_INTEGRITY = 60
    MINING_HISTORY = 61
    HARDWARE_INTEGRITY = 62
    LOSS = 63
    OTHER = 64

    @property
    def label(self) -> str:
        """The reason's name as protocol and pages write it."""
        return "accepted" if self is Reason.NONE else self.name.lower()


# of batches that were rejected after their time was judged: they hold their window, others no window at all
DATED: Final = frozenset({Reason.REGISTER_MISMATCH, Reason.BAD_WORK, Reason.BAD_ATTESTATION})
# what the loss check says of windows, and all that a decision of the DAO may lift from them (settlement.md, 2)
DISPUTES: Final = frozenset({Reason.RECEIVED_EXCEEDS_SENT, Reason.LOSS_EXCEEDS_LIMIT})
RELEASABLE: Final = DISPUTES | {
    Reason.OFFLINE_WINDOW,
    Reason.NOT_GENERATED,
    Reason.OVER_CAPACITY,
    Reason.AT_NIGHT,
    Reason.STUCK_SENSOR,
    Reason.BATCH_NOT_ACCEPTED,
    Reason.OVERFULL,
    Reason.UNMETERED,
}


class Refusal(IntEnum):
    """Why a device does not obey a command that its backend signed (P-CMD-2)."""

    UNSYNCHRONISED = 1
    EXPIRED = 2
    OUT_OF_ORDER = 3  # a higher number was obeyed
    OUT_OF_BOUNDS = 4  # a number that the device cannot hold, an interval that it cannot keep
    NO_RELAY = 5
    OTHER_CHANNEL = 6  # not the relay's, or not metered
    CASE_OPEN = 7
    BOARD_FAULT = 8
    NO_READING = 9
    STOPPED = 10  # a stop came in between, or the device stops
    MEDIUM = 11  # it cannot be noted, so it might be obeyed twice

    @property
    def label(self) -> str:
        """The name as protocol and pages write it."""
        return self.name.lower()


class Verdict(StrEnum):
    """What ingest decided about a message."""

    ACCEPTED = "accepted"
    HELD = "held"
    REJECTED = "rejected"
    DUPLICATE = "duplicate"


class Rejected(MaxgreenError):  # noqa: N818 - the third kind of error
    """Outside bytes that break a rule; kept as evidence under their reason."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        """Let it pass between processes, whatever its class asks for when it is made."""
        return _rejected, (type(self), self.reason, str(self))


def _rejected(kind: type[Rejected], reason: Reason, message: str) -> Rejected:
    error = kind.__new__(kind, message)
    error.args, error.reason = (message,), reason
    return error


class Malformed(Rejected):
    """Bytes that do not follow the format."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.MALFORMED, message)


class BadSignature(Rejected):
    """A signature that does not verify, or with s > n/2 (P-SIG-1)."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.BAD_SIGNATURE, message)
