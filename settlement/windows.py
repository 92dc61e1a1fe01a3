"""The windows of a line: what was sent and received in ten minutes, and whether it counts."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from maxgreen.protocol.batch import Role
from maxgreen.protocol.reasons import Reason
from maxgreen.protocol.work import WINDOW_MS
from maxgreen.verify.rules import Action, Limits
from settlement.checks import Held, night_windows, not_generated_days, over_capacity_windows, stuck_windows
from settlement.inputs import ChannelTerms, Inputs, LineTerms, Party
from settlement.periods import period_bounds
from settlement.replay import Fact

WINDOW_S: Final = WINDOW_MS // 1000
DAY_S: Final = 86_400
EXPECTED_DENOMINATOR: Final = 2 * 10**18
_PPM: Final = 10**6
_RELEASABLE: Final = {
    Reason.OFFLINE_WINDOW,
    Reason.NOT_GENERATED,
    Reason.OVER_CAPACITY,
    Reason.AT_NIGHT,
    Reason.STUCK_SENSOR,
    Reason.RECEIVED_EXCEEDS_SENT,
    Reason.LOSS_EXCEEDS_LIMIT,
}
_DISPUTES: Final = {Reason.RECEIVED_EXCEEDS_SENT, Reason.LOSS_EXCEEDS_LIMIT}


class State(StrEnum):
    """A window's one state; empty windows are not listed."""

    HELD = "held"
    DISPUTED = "disputed"
    PARTIAL = "partial"
    COUNTED = "counted"


@dataclass(frozen=True, slots=True)
class Window:
    """Ten UTC minutes of a line: mW·s, µA²·ms; `error_mws` is the first three terms of the error budget."""

    window_s: int
    sent_mws: int
    received_mws: int
    square_current: int
    expected_mws: int
    error_mws: int
    state: State
    reasons: tuple[Reason, ...]

    @property
    def counts(self) -> bool:
        """Whether its energy is payable."""
        return self.state in {State.COUNTED, State.PARTIAL}


@dataclass(frozen=True)
class End:
    """One end of a line: its device, channel and what its batches say."""

    party: Party
    channel: int
    base_seq: int
    facts: tuple[Fact, ...]
    online_required: bool

    def terms(self, t_ms: int) -> ChannelTerms:
        """Return the channel's registration; one without it meters nothing."""
        return self.party.terms(self.channel, t_ms) or ChannelTerms(0, self.channel, 0, 0, 0, 0)

    def cut(self, until_s: int) -> Fact | None:
        """Return the batch of the last attestation before `until` (accepted batches only)."""
        found = None
        for fact in self.facts:
            if fact.accepted and any(a.channel == self.channel and a.unix_s < until_s for a in fact.batch.attestations):
                found = fact
        return found

    def windows(self) -> dict[int, list[Fact]]:
        """Return the facts that count for the line, by window."""
        by_window: dict[int, list[Fact]] = defaultdict(list)
        for fact in self.facts:
            if fact.batch.seq > self.base_seq:
                by_window[fact.window_s].append(fact)
        return by_window


@dataclass(frozen=True)
class LineWindows:
    """What the windows of a line add up from."""

    miner: End
    node: End
    windows: tuple[Window, ...]
    interval_ms: int
    peak_mw: int
    batches: Mapping[int, tuple[bytes, ...]] = field(default_factory=dict)  # digests of both ends, by window


def line_windows(inputs: Inputs, line: LineTerms, facts: Mapping[bytes, Sequence[Fact]]) -> LineWindows:
    """Return every window of a line from the pack's start to its end, judged."""
    miner_party, node_party = inputs.party(line.miner), inputs.party(line.node)
    miner = End(miner_party, line.miner_channel, line.sent_seq, tuple(facts[miner_party.device]), True)
    node = End(
        node_party, line.node_channel, line.received_seq, tuple(facts[node_party.device]), node_party.online_required
    )
    sent, received = miner.windows(), node.windows()
    end_s = line_end(inputs, line)
    seconds = sorted(w for w in sent.keys() | received.keys() if inputs.start_s <= w < end_s)
    held = _held(inputs, line, (miner, node))
    partial = _partial(line, (miner, node))
    released = _released(inputs, (miner, node))
    windows = []
    for window_s in seconds:
        reasons = held.get(window_s, set()) - (_RELEASABLE if window_s in released else set())
        window = _measured(line, miner, node, window_s, sent.get(window_s, []), received.get(window_s, []))
        if window_s in partial or window_s not in sent or window_s not in received:
            reasons = reasons | {Reason.PARTIAL}
        elif window_s not in released:
            reasons = reasons | _loss_reasons(inputs, line, miner, node, [window])
        windows.append(_stated(window, reasons))
    digests = {
        w: tuple(sorted(f.digest for f in (*sent.get(w, []), *received.get(w, [])) if f.accepted)) for w in seconds
    }
    result = LineWindows(
        miner, node, tuple(windows), _interval_ms(miner, node), miner.terms(inputs.until_s * 1000).peak_mw, digests
    )
    return _dispute_period(inputs, line, result, released)


def error_terms(miner: End, node: End, window_s: int, sent_mws: int, received_mws: int) -> int:
    """Return the first three terms of a window's error budget, mW·s (settlement.md, Loss)."""
    t_ms = window_s * 1000
    first, second = miner.terms(t_ms), node.terms(t_ms)
    return (
        _ceil(sent_mws * first.error_ppm, _PPM)
        + _ceil(received_mws * second.error_ppm, _PPM)
        + _ceil((abs(first.offset_mw) + abs(second.offset_mw)) * WINDOW_MS, 1000)
    )


def edge_term(runs: int, peak_mw: int, interval_ms: int) -> int:
    """Return the last term: a sample's uncertainty at both edges of every run of windows, mW·s."""
    return _ceil(runs * 2 * peak_mw * interval_ms, 1000)


def count_runs(windows: Iterable[int], last: int = -1) -> int:
    """Return how many maximal runs of adjoining windows begin after the run that ends at `last`."""
    runs = 0
    for window_s in sorted(windows):
        if window_s != last + WINDOW_S:
            runs += 1
        last = window_s
    return runs


def exceeds(line: LineTerms, sent_mws: int, received_mws: int, expected_mws: int, error_mws: int) -> set[Reason]:
    """Return how a loss breaks its bounds: the loss rule of settlement.md."""
    lost_mws = sent_mws - received_mws
    reasons = set()
    if received_mws > sent_mws + error_mws:
        reasons.add(Reason.RECEIVED_EXCEEDS_SENT)
    if lost_mws > expected_mws + error_mws or (lost_mws - error_mws) * _PPM > line.max_loss_ppm * sent_mws:
        reasons.add(Reason.LOSS_EXCEEDS_LIMIT)
    return reasons


def _measured(line: LineTerms, miner: End, node: End, window_s: int, sent: list[Fact], received: list[Fact]) -> Window:
    sent_mws = sum(fact.energy_mws(miner.channel) for fact in sent)
    received_mws = sum(fact.energy_mws(node.channel) for fact in received)
    square = sum(fact.growth(miner.channel).square_current for fact in sent)
    if line.resistance_uohm:
        expected_mws = line.resistance_uohm * square // EXPECTED_DENOMINATOR
    else:
        expected_mws = sent_mws * line.loss_ppm // _PPM
    error_mws = error_terms(miner, node, window_s, sent_mws, received_mws)
    return Window(window_s, sent_mws, received_mws, square, expected_mws, error_mws, State.COUNTED, ())


def _stated(window: Window, reasons: set[Reason]) -> Window:
    """Give a window the first state that applies, and all its reasons."""
    if reasons - _DISPUTES - {Reason.PARTIAL}:
        state = State.HELD
    elif reasons & _DISPUTES:
        state = State.DISPUTED
    elif reasons:
        state = State.PARTIAL
    else:
        state = State.COUNTED
    return replace(window, state=state, reasons=tuple(sorted(reasons)))


def _loss_reasons(inputs: Inputs, line: LineTerms, miner: End, node: End, windows: list[Window]) -> set[Reason]:
    edges = edge_term(
        count_runs(w.window_s for w in windows), miner.terms(inputs.until_s * 1000).peak_mw, _interval_ms(miner, node)
    )
    return exceeds(
        line,
        sum(w.sent_mws for w in windows),
        sum(w.received_mws for w in windows),
        sum(w.expected_mws for w in windows),
        sum(w.error_mws for w in windows) + edges,
    )


def _dispute_period(inputs: Inputs, line: LineTerms, result: LineWindows, released: set[int]) -> LineWindows:
    """Dispute every counted window of the period when they fail together."""
    begin_s = period_start(inputs)
    period = [w for w in result.windows if w.state is State.COUNTED and w.window_s >= begin_s]
    reasons = _loss_reasons(inputs, line, result.miner, result.node, period) if period else set()
    if not reasons:
        return result
    disputed = {w.window_s for w in period} - released
    windows = [_stated(w, {*w.reasons, *reasons}) if w.window_s in disputed else w for w in result.windows]
    return replace(result, windows=tuple(windows))


def line_end(inputs: Inputs, line: LineTerms) -> int:
    """Return where a line's windows end, unix s: with the period, or where the line was closed."""
    return min(inputs.until_s, line.closed_s) if line.closed_s else inputs.until_s


def period_start(inputs: Inputs) -> int:
    """Return where the period begins, unix s: its month's or day's first midnight."""
    return period_bounds(inputs.period)[0]


def _held(inputs: Inputs, line: LineTerms, ends: tuple[End, End]) -> Held:
    """Return every reason to hold a window but the loss."""
    held: Held = defaultdict(set)
    for end in ends:
        _hold_by_batches(held, end)
        _hold_unattested(held, end, line_end(inputs, line))
        _hold_incomplete(held, end)
        if end.online_required:
            _hold_offline(held, end)
    miner = ends[0]
    limits = inputs.rules.limits_at(inputs.until_s * 1000)
    for reason, windows in _plausibility(miner, line, limits).items():
        for window_s in windows:
            held[window_s].add(reason)
    return held


def _plausibility(miner: End, line: LineTerms, limits: Limits) -> dict[Reason, set[int]]:
    """Run the named checks of windows (settlement.md, 3)."""
    facts = miner.facts
    days = not_generated_days(miner.party, facts)
    unmade = {f.window_s for f in facts if f.window_s // DAY_S * DAY_S in days and f.energy_mws(miner.channel) > 0}
    channels = [line.miner_channel, *miner.party.numbers(Role.GENERATION)]
    return {
        Reason.NOT_GENERATED: unmade,
        Reason.OVER_CAPACITY: over_capacity_windows(miner.party, facts, channels, limits.capacity_ppm),
        Reason.AT_NIGHT: night_windows(miner.party, facts, channels, limits.night_mdeg),
        Reason.STUCK_SENSOR: stuck_windows(facts, channels, limits.stuck_s * 1000),
    }


def _hold_by_batches(held: Held, end: End) -> None:
    reasons = {Reason.CLOCK_UNSYNCHRONISED: Reason.UNSYNCHRONISED, Reason.SUSPENDED_DEVICE: Reason.SUSPENDED}
    for fact in end.facts:
        if not fact.accepted:
            held[fact.window_s].add(reasons.get(fact.reason, Reason.BATCH_NOT_ACCEPTED))


def _hold_unattested(held: Held, end: End, until_s: int) -> None:
    cut = end.cut(until_s)
    for fact in end.facts:
        if fact.window_s < until_s and (cut is None or fact.batch.seq > cut.batch.seq):
            held[fact.window_s].add(Reason.UNATTESTED)


def _hold_incomplete(held: Held, end: End) -> None:
    """Hold the windows that a hole in the chain touches; nothing later is no hole."""
    for before, after in zip(end.facts, end.facts[1:], strict=False):
        if after.batch.seq > before.batch.seq + 1 and after.reason is Reason.GAP_BEFORE:
            for window_s in range(before.window_s, after.window_s + 1, WINDOW_S):
                held[window_s].add(Reason.INCOMPLETE)


def online_windows(facts: Iterable[Fact]) -> set[int]:
    """Return the windows in which a device is online: it, or both neighbours, hold a credited share (P-POW-4)."""
    credited = {fact.window_s for fact in facts if fact.accepted and fact.shares}
    between = {w + WINDOW_S for w in credited if w + 2 * WINDOW_S in credited}
    return credited | between


def _hold_offline(held: Held, end: End) -> None:
    online = online_windows(end.facts)
    for fact in end.facts:
        if fact.window_s not in online:
            held[fact.window_s].add(Reason.OFFLINE_WINDOW)


def _partial(line: LineTerms, ends: tuple[End, End]) -> set[int]:
    """Return the windows that are counted outside the loss check (48)."""
    found = {line.opened_s // WINDOW_S * WINDOW_S}
    for end in ends:
        before: Fact | None = None
        for fact in end.facts:
            growth = fact.growth(end.channel)
            broken = (
                growth.gap_ms > 0
                or growth.longest_ms > 2 * fact.batch.interval_ms
                or fact.skipped_to
                or (before is not None and before.batch.boot != fact.batch.boot)
            )
            if broken:
                start_s = before.window_s if before is not None else fact.window_s
                found.update(range(start_s, fact.window_s + 1, WINDOW_S))
            before = fact
    return found


def _released(inputs: Inputs, ends: tuple[End, End]) -> set[int]:
    """Return the windows whose batches a decision of the DAO released."""
    return {
        fact.window_s
        for end in ends
        for fact in end.facts
        if inputs.rules.decided(end.party.device, fact.batch.seq, Action.RELEASE)
    }


def _interval_ms(miner: End, node: End) -> int:
    return max((fact.batch.interval_ms for end in (miner, node) for fact in end.facts), default=0)


def _ceil(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)
