"""The windows of a line: what was sent and received in ten minutes, and whether it counts."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from typing import Final

from maxgreen.protocol.batch import Role
from maxgreen.protocol.reasons import DATED, DISPUTES, RELEASABLE, Reason
from maxgreen.protocol.work import window_of
from maxgreen.verify.rules import Limits
from settlement.checks import (
    ChannelSum,
    Held,
    channel_sums,
    night_windows,
    not_generated_days,
    over_capacity_windows,
    overfull_windows,
    stuck_windows,
)
from settlement.ends import End
from settlement.facts import Fact
from settlement.inputs import Inputs
from settlement.loss import PPM, WINDOW_S, Measured, add_up, exceeds, measure
from settlement.periods import period_bounds
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
    dispute: tuple[Reason, ...] = ()  # what stays until a decision lifts it, also while the window is held

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


def line_windows(inputs: Inputs, facts: Mapping[bytes, Sequence[Fact]], *, attested: bool = False) -> LineWindows:
    """Return every window of a line from the start of its evidence to the period's end, judged.

    `attested`: as if everything were attested, by what comes later.
    """
    line, node_party = inputs.line, inputs.party(inputs.line.node)
    sent_facts, received_facts = (
        tuple(fact for party in inputs.keys(token) for fact in facts[party.device]) for token in (line.miner, line.node)
    )
    miner = End(inputs.party(line.miner), line.miner_channel, line.sent_base, sent_facts, True)
    node = End(node_party, line.node_channel, line.received_base, received_facts, node_party.online_required)
    sent, received = miner.windows(), node.windows()
    # before both ends are open nothing can be compared
    begin_s = max(inputs.start_s, window_of(max(line.sent_base.time_s, line.received_base.time_s) * 1000))
    seconds = sorted(w for w in sent.keys() | received.keys() if begin_s <= w < line_end(inputs))
    limits = _limits_by_day(inputs)
    measured = [
        measure(line, (miner, node), w, (sent.get(w, []), received.get(w, [])), limits(w).edge_ms) for w in seconds
    ]
    held = _held((miner, node), seconds, limits)
    for end in () if attested else (miner, node):
        _hold_unattested(held, end, line_end(inputs))
    released = _released(inputs, (miner, node))
    for window_s in held:
        held[window_s] -= released[window_s]
    for day in _days(measured):
        _hold_unmetered(held, day, limits(day[0].window_s), released)
    disputes = _dispute(held, inputs, measured, released)
    windows = tuple(Window(m, tuple(sorted(held[m.window_s])), tuple(sorted(disputes[m.window_s]))) for m in measured)
    return LineWindows(miner, node, windows)


def sums_of(windows: Iterable[Window]) -> Sums:
    """Return what the windows that count add up to, day by day."""
    return sum(map(add_up, _days(w.measured for w in windows if w.counts and w.measured.has_energy)), Sums())


def line_end(inputs: Inputs) -> int:
    """Return where the line's windows end, unix s: with the period, or where the line was closed."""
    return min(inputs.until_s, inputs.line.closed_s) if inputs.line.closed_s else inputs.until_s


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


def _held(ends: tuple[End, End], seconds: Sequence[int], limits: Callable[[int], Limits]) -> Held:
    """Return every reason to hold a window that does not come from comparing both ends."""
    held: Held = defaultdict(set)
    sums = [channel_sums(end.facts, end.channel) for end in ends]
    for end, own in zip(ends, sums, strict=True):
        _hold_by_batches(held, end)
        _hold_incomplete(held, end, seconds)
        if end.online_required:
            _hold_offline(held, end)
        for window_s in overfull_windows(own):
            held[window_s].add(Reason.OVERFULL)
    for reason, windows in _plausibility(ends[0], sums[0], limits).items():
        for window_s in windows:
            held[window_s].add(reason)
    return held


def _plausibility(
    miner: End, sent: Mapping[int, ChannelSum], limits: Callable[[int], Limits]
) -> dict[Reason, set[int]]:
    """Run the named checks of windows (settlement.md, 3); `sent`: what the line's channel adds up to."""
    party, facts, generation = miner.party, miner.facts, miner.party.numbers(Role.GENERATION)
    sums = {miner.channel: sent, **{channel: channel_sums(facts, channel) for channel in generation}}
    implausible = {
        channel: {
            Reason.OVER_CAPACITY: over_capacity_windows(party, channel, own, limits),
            Reason.AT_NIGHT: night_windows(party, channel, own, limits),
            Reason.STUCK_SENSOR: stuck_windows(facts, channel, limits),
        }
        for channel, own in sums.items()
    }
    without = {window_s for channel in generation for found in implausible[channel].values() for window_s in found}
    days = not_generated_days(miner.party, facts, limits, without)
    held: dict[Reason, set[int]] = defaultdict(set)
    held[Reason.NOT_GENERATED] = {w for w, one in sent.items() if w // DAY_S * DAY_S in days and one.energy_mws > 0}
    for reasons in implausible.values():
        for reason, windows in reasons.items():
            held[reason] |= windows
    return held


def _hold_by_batches(held: Held, end: End) -> None:
    """Hold the windows of batches that do not count, where it is known when these were measured."""
    last_s = -1  # the window that the chain has reached
    for fact in end.facts:
        if fact.reason is Reason.GAP_BEFORE:
            if fact.window_s >= last_s:
                held[fact.window_s].add(Reason.BATCH_NOT_ACCEPTED)
            continue
        if fact.reason is Reason.SUSPENDED_DEVICE:
            held[fact.window_s].add(Reason.SUSPENDED)
        elif fact.reason is Reason.TAKEN_OUT:
            held[fact.window_s].add(Reason.TAKEN_OUT)
        elif fact.reason in DATED:
            held[fact.window_s].add(Reason.BATCH_NOT_ACCEPTED)
        last_s = max(last_s, fact.window_s) if fact.accepted else last_s


def _hold_unattested(held: Held, end: End, until_s: int) -> None:
    attested = {key: one.seq for key, one in end.registers.cuts(until_s).items()}
    for fact in end.facts:
        above = fact.seq > attested.get(fact.key_number, -1)
        if fact.dated and fact.window_s < until_s and above:
            held[fact.window_s].add(Reason.UNATTESTED)


def _hold_incomplete(held: Held, end: End, seconds: Sequence[int]) -> None:
    """Hold the windows that a hole in the chain touches; nothing later is no hole."""
    for before, after in zip(end.facts, end.facts[1:], strict=False):
        if after.seq > before.seq + 1 and after.reason is Reason.GAP_BEFORE:
            # a batch that waits says itself when it was measured: it holds what follows, never what was before
            held[before.window_s].add(Reason.INCOMPLETE)
            for window_s in seconds[bisect_left(seconds, before.window_s) : bisect_right(seconds, after.window_s)]:
                held[window_s].add(Reason.INCOMPLETE)


def _hold_offline(held: Held, end: End) -> None:
    online = online_windows(end.facts)
    for fact in end.facts:
        if fact.accepted and fact.window_s not in online:
            held[fact.window_s].add(Reason.OFFLINE_WINDOW)


def _hold_unmetered(
    held: Held, day: Sequence[Measured], limits: Limits, released: Mapping[int, frozenset[Reason]]
) -> None:
    """Hold what an end did not meter of a day, the darkest windows first, until the rest is little enough.

    Little enough in time, and in energy that the other end metered meanwhile.
    """
    for dark, unmet, other in (
        ("sent_dark_ms", "sent_unmet_mws", "received_mws"),
        ("received_dark_ms", "received_unmet_mws", "sent_mws"),
    ):
        for name, whole in ((dark, "metered_ms"), (unmet, other)):
            flowing = [w for w in day if getattr(w, other) and not held[w.window_s]]
            left = sum(getattr(w, name) for w in flowing)
            most = sum(getattr(w, whole) for w in flowing) * limits.unmetered_ppm
            for w in sorted(flowing, key=lambda w: (-getattr(w, name), w.window_s)):
                if left * PPM <= most:
                    break
                left -= getattr(w, name)
                held[w.window_s] |= {Reason.UNMETERED} - released[w.window_s]


def _dispute(
    held: Held,
    inputs: Inputs,
    measured: Sequence[Measured],
    released: Mapping[int, frozenset[Reason]],
) -> Held:
    """Add what the loss check says of each window and each day, and what an earlier close left disputed.

    Return what stays by window: what was disputed before, and what is disputed and not held now.
    """
    line, before = inputs.line, inputs.windows_before
    stays: Held = defaultdict(set)
    for w in measured:
        _, numbers = before.get(w.window_s, ("", ""))
        stays[w.window_s] = ({Reason(int(n)) for n in numbers.split()} & DISPUTES) - released[w.window_s]
        held[w.window_s] |= (exceeds(line, [w]) - released[w.window_s]) | stays[w.window_s]
    for day in _days(measured):
        together = [w for w in day if w.has_energy and not held[w.window_s] and not released[w.window_s] & DISPUTES]
        for reason in exceeds(line, together):
            for w in together:
                held[w.window_s].add(reason)
    for w in measured:
        if DISPUTES.issuperset(held[w.window_s]):
            stays[w.window_s] |= held[w.window_s]
    return stays


def _released(inputs: Inputs, ends: tuple[End, End]) -> Mapping[int, frozenset[Reason]]:
    """Return the reasons that decisions of the DAO lift, by window."""
    found: dict[int, frozenset[Reason]] = defaultdict(frozenset)
    for end in ends:
        for fact in end.facts:
            lifted = inputs.rules.released(fact.device, fact.seq)
            if lifted:
                found[fact.window_s] |= {reason for reason in RELEASABLE if reason in lifted}
    return found
