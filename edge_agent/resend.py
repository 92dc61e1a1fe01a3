"""When a batch goes out, and when again: a pure policy (P-RCT-2).

A batch goes out once, in order, at most `ahead` of the ledger's receipt, and the further the more the last receipts
took (slow start, RFC 5681): a backlog fills the way, and a ledger that is away gets little. What a connection lost
before the broker had it goes out again at once. Of the others only the oldest without a receipt ever does: it tells
whether the ledger listens, and the receipt that it brings says what else is missing. It is waited for from when it was
sent, or the last receipt moved, with full jitter (Brooker, "Exponential backoff and jitter", 2015) over a time that
doubles, so that a backend that is away for a month costs some twenty messages a day.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Final

MAX_DELAY_S: Final = 3 * 3_600.0
MOST_ROOM: Final = 440  # with the 60 by default: a broker keeps a thousand for a ledger that is away
_LOST: Final = float("-inf")


@dataclass(frozen=True, slots=True)
class Flight:
    """What went out and has no receipt: `first` and what follows it, each with the time it last did, s."""

    first: int = 0
    sent_s: tuple[float, ...] = ()
    since_s: float = _LOST  # a receipt for `first` is waited for from here on, or from when it was sent
    delay_s: float = 0.0  # and for so long
    attempt: int = 0  # how often `first` went out again
    room: int = 0  # so many did the last receipts take, as long as each took several

    @property
    def end(self) -> int:
        """The seq after the last one that went out."""
        return self.first + len(self.sent_s)


def due(flight: Flight, now_s: float, *, next_seq: int, ahead: int) -> int | None:
    """Return the seq that goes out now, None when none does; the spool holds those below `next_seq`."""
    if _LOST in flight.sent_s:
        return flight.first + flight.sent_s.index(_LOST)
    if flight.sent_s and now_s - max(flight.sent_s[0], flight.since_s) >= flight.delay_s:
        return flight.first
    if flight.end < next_seq and len(flight.sent_s) < ahead + flight.room:
        return flight.end
    return None


def sent(flight: Flight, seq: int, now_s: float, *, resend_s: float, chance: Callable[[], float]) -> Flight:
    """Return the flight after `seq`, the one that was due, went out; `chance` gives numbers in [0, 1)."""
    place = seq - flight.first
    if place == len(flight.sent_s):
        flight = replace(flight, sent_s=(*flight.sent_s, now_s))
        return flight if place else replace(flight, delay_s=_delay_s(0, resend_s, chance()))
    again = place == 0 and flight.sent_s[0] != _LOST
    flight = replace(flight, sent_s=(*flight.sent_s[:place], now_s, *flight.sent_s[place + 1 :]))
    if not again:
        return flight
    attempt = flight.attempt + 1
    return replace(flight, delay_s=_delay_s(attempt, resend_s, chance()), attempt=attempt)


def receipted(
    flight: Flight, next_seq: int, now_s: float, *, resend_s: float, chance: Callable[[], float], hole: bool = False
) -> Flight:
    """Return the flight after a receipt: what the ledger has is waited for no longer.

    `hole`: the ledger holds batches beyond `next_seq`, so that one is missing.
    """
    took = next_seq - flight.first
    if not 0 <= took < len(flight.sent_s):
        return Flight(next_seq, room=_room(flight, min(took, len(flight.sent_s))))
    if not took:
        # it was sent before what the ledger holds: no way keeps it that long
        return replace(flight, delay_s=0.0) if hole and not flight.attempt else flight
    # an answer to the one that went out again, and to no other: the next one is lost as well, it seems
    alone = flight.attempt > 0 and took == 1
    return Flight(
        next_seq,
        flight.sent_s[took:],
        since_s=now_s,
        delay_s=0.0 if alone or hole else _delay_s(0, resend_s, chance()),
        room=_room(flight, took),
    )


def lost(flight: Flight, seqs: Collection[int]) -> Flight:
    """Return the flight when the connection ended before the broker had `seqs`: they go out again at once."""
    sent_s = tuple(_LOST if flight.first + k in seqs else at for k, at in enumerate(flight.sent_s))
    return replace(flight, sent_s=sent_s)


def awake(flight: Flight, now_s: float, *, resend_s: float, chance: Callable[[], float]) -> Flight:
    """Return the flight when the backend is heard after a silence: `first` goes out soon, not a fleet's at once."""
    if not flight.attempt or not flight.sent_s:
        return flight
    return replace(flight, since_s=now_s, delay_s=min(flight.delay_s, chance() * resend_s), attempt=0)


def _room(flight: Flight, took: int) -> int:
    return min(flight.room + took, MOST_ROOM) if took > 1 else 0


def _delay_s(attempt: int, resend_s: float, chance: float) -> float:
    return resend_s + chance * (min(MAX_DELAY_S, resend_s * 2 ** min(attempt, 30)) if attempt else resend_s)
