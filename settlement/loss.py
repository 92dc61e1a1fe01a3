"""The loss check of a line: what may be lost on the way, and what a meter may err (settlement.md, 4)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from maxgreen.protocol.reasons import Reason
from maxgreen.protocol.work import WINDOW_MS
from settlement.ends import End, Spans, length_ms, merged
from settlement.facts import Fact
from settlement.inputs import LineTerms
from settlement.sums import Sums

WINDOW_S: Final = WINDOW_MS // 1000
EXPECTED_DENOMINATOR: Final = 2 * 10**18
PPM: Final = 10**6


@dataclass(frozen=True, slots=True)
class Measured:
    """Ten UTC minutes of a line as its meters have them; mW·s, µA²·ms, ms.

    `error_mws` is what both meters may err, `edge_mws` what they may err by sampling at other instants, once for what
    is compared together. `sent_dark_ms` is how long the sent end did not meter while the other one did, and
    `sent_unmet_mws` what may have passed there meanwhile.
    """

    window_s: int
    sent_mws: int
    received_mws: int
    square_current: int
    expected_mws: int
    error_mws: int
    edge_mws: int
    sent_dark_ms: int
    received_dark_ms: int
    sent_unmet_mws: int
    received_unmet_mws: int
    metered_ms: int  # by at least one end

    @property
    def has_energy(self) -> bool:
        """Whether anything was sent or received."""
        return self.sent_mws > 0 or self.received_mws > 0

    @property
    def tolerance_mws(self) -> int:
        """What both ends may differ by, but for the edge."""
        return self.error_mws + self.sent_unmet_mws + self.received_unmet_mws

    @property
    def matched_mws(self) -> int:
        """What counts of a window that is one-sided."""
        return Sums(self.sent_mws, self.received_mws, self.expected_mws, self.error_mws).payable_mws

    @property
    def one_sided(self) -> bool:
        """Whether an end did not meter while the other one did."""
        return self.sent_dark_ms > 0 or self.received_dark_ms > 0


def measure(
    line: LineTerms, ends: tuple[End, End], window_s: int, facts: tuple[Sequence[Fact], Sequence[Fact]], edge_ms: int
) -> Measured:
    """Return what a window of a line is; `edge_ms` is the longest sampling interval that the error budget takes."""
    miner, node = ends
    sent_facts, received_facts = facts
    sent = [fact.channel(miner.channel) for fact in sent_facts]
    received = [fact.channel(node.channel) for fact in received_facts]
    sent_mws = sum(metered.energy_mws for metered in sent)
    received_mws = sum(metered.energy_mws for metered in received)
    square = sum(metered.square_current for metered in sent)
    if line.resistance_uohm:
        expected_mws = line.resistance_uohm * square // EXPECTED_DENOMINATOR
    else:
        expected_mws = sent_mws * line.loss_ppm // PPM
    intervals = (fact.interval_ms for fact in (*sent_facts, *received_facts) if fact.accepted)
    interval_ms = max(intervals, default=0)
    sent_spans, received_spans = miner.metered(sent_facts), node.metered(received_facts)
    either_ms = length_ms(merged([*sent_spans, *received_spans]))
    longest_ms = max((metered.longest_ms for metered in (*sent, *received)), default=0)
    sent_dark_ms = _dark_ms(sent_spans, either_ms, longest_ms)
    received_dark_ms = _dark_ms(received_spans, either_ms, longest_ms)
    first, second = miner.terms(window_s * 1000), node.terms(window_s * 1000)
    error_mws = (
        _ceil(sent_mws * first.error_ppm, PPM)
        + _ceil(received_mws * second.error_ppm, PPM)
        + _ceil((abs(first.offset_mw) + abs(second.offset_mw)) * WINDOW_MS, 1000)
    )
    return Measured(
        window_s,
        sent_mws,
        received_mws,
        square,
        expected_mws,
        error_mws,
        _ceil(2 * first.peak_mw * min(interval_ms, edge_ms), 1000),
        sent_dark_ms,
        received_dark_ms,
        min(received_mws, _ceil(first.peak_mw * sent_dark_ms, 1000)),
        min(sent_mws, _ceil(first.peak_mw * received_dark_ms, 1000)),
        either_ms,
    )


def add_up(windows: Iterable[Measured]) -> Sums:
    """Return the sums of windows of one UTC day, ascending."""
    windows = list(windows)
    clear = [w for w in windows if not w.one_sided]
    return Sums(
        sent_mws=sum(w.sent_mws for w in clear),
        received_mws=sum(w.received_mws for w in clear),
        expected_mws=sum(w.expected_mws for w in clear),
        error_mws=sum(w.error_mws for w in clear) + _edge_mws(clear),
        matched_mws=sum(w.matched_mws for w in windows if w.one_sided),
    )


def exceeds(line: LineTerms, windows: Sequence[Measured]) -> set[Reason]:
    """Return how the loss of windows of one UTC day, taken together, breaks its bounds."""
    sent_mws, received_mws = sum(w.sent_mws for w in windows), sum(w.received_mws for w in windows)
    expected_mws = sum(w.expected_mws for w in windows)
    error_mws = sum(w.tolerance_mws for w in windows) + _edge_mws(windows)
    lost_mws = sent_mws - received_mws
    reasons = set()
    if received_mws > sent_mws + error_mws:
        reasons.add(Reason.RECEIVED_EXCEEDS_SENT)
    if lost_mws > expected_mws + error_mws or (lost_mws - error_mws) * PPM > line.max_loss_ppm * sent_mws:
        reasons.add(Reason.LOSS_EXCEEDS_LIMIT)
    return reasons


def _edge_mws(windows: Sequence[Measured]) -> int:
    """Return the largest edge: once, since who could part windows at will would have it for each."""
    return max((w.edge_mws for w in windows), default=0)


def _dark_ms(spans: Spans, either_ms: int, longest_ms: int) -> int:
    """Return how long an end did not meter while the other one did, beyond the longest time between two samples."""
    return max(0, either_ms - length_ms(spans) - longest_ms)


def _ceil(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)
