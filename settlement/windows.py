"""The windows of a line: what was sent and received in ten minutes, and whether it counts."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import groupby
from typing import Final

from maxgreen.protocol.batch import Role
from maxgreen.protocol.reasons import DISPUTES, RELEASABLE, Reason
from maxgreen.verify.rules import Limits
from settlement.checks import (
    Held,
    night_windows,
    not_generated_days,
    over_capacity_windows,
    overfull_windows,
    stuck_windows,
)
from settlement.ends import End
from settlement.inputs import Inputs, LineTerms
from settlement.loss import PPM, WINDOW_S, Measured, add_up, exceeds, measure
from settlement.periods import period_bounds
from settlement.replay import Fact
from settlement.sums import Sums

DAY_S: Final = 86_400


class State(StrEnum):
    """A window's one state; empty windows are not listed."""

    HELD = "held"
    DISPUTED = "disputed"
    COUNTED = "counted"


@dataclass(frozen=True, slots=True)
class Window:
    """Ten UTC minutes of a line, judged."""

    measured: Measured
    reasons: tuple[Reason, ...]  # ascending

    @property
    def window_s(self) -> int:
        """When it begins, unix s."""
        return self.measured.window_s

    @property
    def state(self) -> State:
        """The first state that applies."""
        if not self.reasons:
            return State.COUNTED
        return State.DISPUTED if DISPUTES.issuperset(self.reasons) else State.HELD

    @property
    def counts(self) -> bool:
        """Whether its energy is payable."""
        return not self.reasons


@dataclass(frozen=True)
class LineWindows:
    """What the windows of a line add up from."""

    miner: End
    node: End
    windows: tuple[Window, ...]
    batches: Mapping[int, tuple[bytes, ...]] = field(default_factory=dict)  # digests of both ends, by window


def line_windows(inputs: Inputs, line: LineTerms, facts: Mapping[bytes, Sequence[Fact]]) -> LineWindows:
    """Return every window of a line from the pack's start to its end, judged."""
    node_party = inputs.party(line.node)
    sent_facts, received_facts = (
        tuple(fact for party in inputs.keys(token) for fact in facts[party.device]) for token in (line.miner, line.node)
    )
    miner = End(inputs.party(line.miner), line.miner_channel, line.sent_base, sent_facts, True)
    node = End(node_party, line.node_channel, line.received_base, received_facts, node_party.online_required)
    sent, received = miner.windows(), node.windows()
    seconds = sorted(w for w in sent.keys() | received.keys() if inputs.start_s <= w < line_end(inputs, line))
    limits = _limits_by_day(inputs)
    measured = [
        measure(line, (miner, node), w, (sent.get(w, []), received.get(w, [])), limits(w).edge_ms) for w in seconds
    ]
    held = _held(inputs, line, (miner, node), seconds, limits)
    released = _released(inputs, (miner, node))
    for window_s in held:
        held[window_s] -= released[window_s]
    for day in _days(measured):
        _hold_unmetered(held, day, limits(day[0].window_s), released)
    _dispute(held, inputs, line, measured, released)
    windows = tuple(Window(m, tuple(sorted(held[m.window_s]))) for m in measured)
    digests = {
        w: tuple(sorted(f.digest for f in (*sent.get(w, []), *received.get(w, [])) if f.accepted)) for w in seconds
    }
    return LineWindows(miner, node, windows, digests)


def sums_of(windows: Iterable[Window]) -> Sums:
    """Return what the windows that count add up to, day by day."""
    return sum(map(add_up, _days(w.measured for w in windows if w.counts and w.measured.has_energy)), Sums())


def line_end(inputs: Inputs, line: LineTerms) -> int:
    """Return where a line's windows end, unix s: with the period, or where the line was closed."""
    return min(inputs.until_s, line.closed_s) if line.closed_s else inputs.until_s


def period_start(inputs: Inputs) -> int:
    """Return where the period begins, unix s: its month's or day's first midnight."""
    return period_bounds(inputs.period)[0]


def online_windows(facts: Iterable[Fact]) -> set[int]:
    """Return the windows in which a device is online: it, or both neighbours, hold a credited share (P-POW-4)."""
    credited = {fact.window_s for fact in facts if fact.accepted and fact.shares}
    between = {w + WINDOW_S for w in credited if w + 2 * WINDOW_S in credited}
    return credited | between


def _days(windows: Iterable[Measured]) -> Iterator[list[Measured]]:
    """Yield windows by UTC day: what is judged together is a day, however a period is cut."""
    for _, day in groupby(windows, key=lambda w: w.window_s // DAY_S):
        yield list(day)


def _limits_by_day(inputs: Inputs) -> Callable[[int], Limits]:
    """Return the limits of a window: those valid at the end of its UTC day."""
    return lambda window_s: inputs.rules.limits_at((window_s // DAY_S + 1) * DAY_S * 1000)


def _held(
    inputs: Inputs,
    line: LineTerms,
    ends: tuple[End, End],
    seconds: Sequence[int],
    limits: Callable[[int], Limits],
) -> Held:
    """Return every reason to hold a window that does not come from comparing both ends."""
    held: Held = defaultdict(set)
    for end in ends:
        _hold_by_batches(held, end)
        _hold_unattested(held, end, line_end(inputs, line))
        _hold_incomplete(held, end, seconds)
        if end.online_required:
            _hold_offline(held, end)
        for window_s in overfull_windows(end.facts, [end.channel]):
            held[window_s].add(Reason.OVERFULL)
    for reason, windows in _plausibility(ends[0], line, limits).items():
        for window_s in windows:
            held[window_s].add(reason)
    return held


def _plausibility(miner: End, line: LineTerms, limits: Callable[[int], Limits]) -> dict[Reason, set[int]]:
    """Run the named checks of windows (settlement.md, 3)."""
    facts, generation = miner.facts, miner.party.numbers(Role.GENERATION)
    implausible = {
        channel: {
            Reason.OVER_CAPACITY: over_capacity_windows(miner.party, facts, [channel], limits),
            Reason.AT_NIGHT: night_windows(miner.party, facts, [channel], limits),
            Reason.STUCK_SENSOR: stuck_windows(facts, channel, limits),
        }
        for channel in {line.miner_channel, *generation}
    }
    without = {window_s for channel in generation for found in implausible[channel].values() for window_s in found}
    days = not_generated_days(miner.party, facts, limits, without)
    held: dict[Reason, set[int]] = defaultdict(set)
    held[Reason.NOT_GENERATED] = {
        f.window_s for f in facts if f.window_s // DAY_S * DAY_S in days and f.energy_mws(miner.channel) > 0
    }
    for reasons in implausible.values():
        for reason, windows in reasons.items():
            held[reason] |= windows
    return held


def _hold_by_batches(held: Held, end: End) -> None:
    reasons = {
        Reason.SUSPENDED_DEVICE: Reason.SUSPENDED,
        Reason.TAKEN_OUT: Reason.TAKEN_OUT,
    }
    for fact in end.facts:
        if not fact.accepted:
            held[fact.window_s].add(reasons.get(fact.reason, Reason.BATCH_NOT_ACCEPTED))


def _hold_unattested(held: Held, end: End, until_s: int) -> None:
    attested = {key: fact.batch.seq for key, fact in end.cuts(until_s).items()}
    for fact in end.facts:
        if fact.window_s < until_s and fact.batch.seq > attested.get(fact.party.key_number, -1):
            held[fact.window_s].add(Reason.UNATTESTED)


def _hold_incomplete(held: Held, end: End, seconds: Sequence[int]) -> None:
    """Hold the windows that a hole in the chain touches; nothing later is no hole."""
    for before, after in zip(end.facts, end.facts[1:], strict=False):
        if after.batch.seq > before.batch.seq + 1 and after.reason is Reason.GAP_BEFORE:
            first_s, last_s = sorted((before.window_s, after.window_s))
            for window_s in seconds[bisect_left(seconds, first_s) : bisect_right(seconds, last_s)]:
                held[window_s].add(Reason.INCOMPLETE)


def _hold_offline(held: Held, end: End) -> None:
    online = online_windows(end.facts)
    for fact in end.facts:
        if fact.accepted and fact.window_s not in online:
            held[fact.window_s].add(Reason.OFFLINE_WINDOW)


def _hold_unmetered(
    held: Held, day: Sequence[Measured], limits: Limits, released: Mapping[int, frozenset[Reason]]
) -> None:
    """Hold a day's windows that an end did not meter, where these are too much of the time in which energy flowed."""
    sending = [w for w in day if w.has_energy and not held[w.window_s]]
    most = sum(w.metered_ms for w in sending) * limits.unmetered_ppm
    for name in ("sent_dark_ms", "received_dark_ms"):
        dark = [w for w in sending if getattr(w, name)]
        if sum(getattr(w, name) for w in dark) * PPM > most:
            for w in dark:
                held[w.window_s] |= {Reason.UNMETERED} - released[w.window_s]


def _dispute(
    held: Held,
    inputs: Inputs,
    line: LineTerms,
    measured: Sequence[Measured],
    released: Mapping[int, frozenset[Reason]],
) -> None:
    """Add what the loss check says of each window and each day, and what the last close left disputed."""
    before = inputs.windows_before.get(line.line, {})
    for w in measured:
        state, numbers = before.get(w.window_s, ("", ""))
        stays = {Reason(int(n)) for n in numbers.split()} & DISPUTES if state == State.DISPUTED else set()
        held[w.window_s] |= (exceeds(line, [w]) | stays) - released[w.window_s]
    for day in _days(measured):
        together = [w for w in day if not held[w.window_s] and not released[w.window_s] & DISPUTES]
        for reason in exceeds(line, together):
            for w in together:
                held[w.window_s].add(reason)


def _released(inputs: Inputs, ends: tuple[End, End]) -> Mapping[int, frozenset[Reason]]:
    """Return the reasons that decisions of the DAO lift, by window."""
    found: dict[int, frozenset[Reason]] = defaultdict(frozenset)
    for end in ends:
        for fact in end.facts:
            lifted = inputs.rules.released(fact.party.device, fact.batch.seq)
            if lifted:
                found[fact.window_s] |= {reason for reason in RELEASABLE if reason in lifted}
    return found
