"""When a batch goes out, and when again: a pure policy (P-RCT-2).

A batch goes out once, in order, at most `ahead` of the ledger's receipt. Only the oldest one without a receipt ever
goes out again: it tells whether the ledger listens, and the receipt that it brings says what else is missing. It is
waited for from when it was sent, with full jitter (Brooker, "Exponential backoff and jitter", 2015) over a time that
doubles, so that a backend that is away for a month costs some twenty messages a day.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

MAX_DELAY_S: Final = 3 * 3_600.0


@dataclass(frozen=True, slots=True)
class Flight:
    """What went out and has no receipt: `first` and what follows it, each with the time it last did, s."""

    first: int = 0
    sent_s: tuple[float, ...] = ()
    delay_s: float = 0.0  # how long a receipt for `first` is waited for
    attempt: int = 0  # how often `first` went out again

    @property
    def end(self) -> int:
        """The seq after the last one that went out."""
        return self.first + len(self.sent_s)


def due(flight: Flight, now_s: float, *, next_seq: int, ahead: int) -> int | None:
    """Return the seq that goes out now, None when none does; the spool holds those below `next_seq`."""
    if flight.sent_s and now_s - flight.sent_s[0] >= flight.delay_s:
        return flight.first
    if flight.end < next_seq and len(flight.sent_s) < ahead:
        return flight.end
    return None


def sent(flight: Flight, seq: int, now_s: float, *, resend_s: float, chance: Callable[[], float]) -> Flight:
    """Return the flight after `seq`, the one that was due, went out; `chance` gives numbers in [0, 1)."""
    if seq != flight.first or not flight.sent_s:
        delay_s = flight.delay_s if flight.sent_s else _delay_s(0, resend_s, chance())
        return replace(flight, sent_s=(*flight.sent_s, now_s), delay_s=delay_s)
    attempt = flight.attempt + 1
    delay_s = _delay_s(attempt, resend_s, chance())
    return replace(flight, sent_s=(now_s, *flight.sent_s[1:]), delay_s=delay_s, attempt=attempt)


def receipted(flight: Flight, next_seq: int, *, resend_s: float, chance: Callable[[], float]) -> Flight:
    """Return the flight after a receipt: what the ledger has is waited for no longer."""
    if next_seq == flight.first:
        return flight
    if not flight.first < next_seq < flight.end:
        return Flight(next_seq)
    return Flight(next_seq, flight.sent_s[next_seq - flight.first :], _delay_s(0, resend_s, chance()))


def unsent(flight: Flight, seq: int) -> Flight:
    """Return the flight without `seq` and what followed it: the connection ended before the broker had it."""
    return flight if seq >= flight.end else replace(flight, sent_s=flight.sent_s[: max(0, seq - flight.first)])


def awake(flight: Flight, now_s: float, *, resend_s: float, chance: Callable[[], float]) -> Flight:
    """Return the flight when the backend is heard after a silence: `first` goes out soon, not a fleet's at once."""
    if not flight.attempt:
        return flight
    delay_s = min(flight.delay_s, now_s - flight.sent_s[0] + chance() * resend_s) if flight.sent_s else 0.0
    return replace(flight, delay_s=delay_s, attempt=0)


def _delay_s(attempt: int, resend_s: float, chance: float) -> float:
    return resend_s + chance * (min(MAX_DELAY_S, resend_s * 2 ** min(attempt, 30)) if attempt else resend_s)
