"""Line-days: what a line comes to in one UTC day. A period's statement is the sum of its days."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from settlement.ends import End, Registers
from settlement.facts import Fact
from settlement.inputs import Inputs
from settlement.sums import Sums
from settlement.windows import DAY_S, LineWindows, State, Window, online_windows, sums_of


@dataclass(frozen=True)
class LineDay:
    """What a line comes to in one UTC day; energies mW·s."""

    day_s: int  # its midnight, unix s
    sums: Sums  # of what counts
    counted_windows: int
    sent_mws: int  # in the windows that count
    received_mws: int
    held: Mapping[int, int]  # by the number of the first reason
    disputed: Mapping[int, int]
    sent_reverse_mws: int
    received_reverse_mws: int
    online_windows: int
    hashes: int
    is_unpaid: bool  # whether a window with energy does not count
    rows: str  # of windows.csv, with nothing in the columns of what stood before


@dataclass(frozen=True)
class Account:
    """What the evidence of a line comes to, day by day, and what its ends attested."""

    days: Sequence[LineDay]  # ascending; those without anything are left out
    sent: Registers
    received: Registers


def account_of(inputs: Inputs, found: LineWindows) -> Account:
    """Return what the windows of a line and the batches behind them come to."""
    windows = {day: list(own) for day, own in groupby(found.windows, key=lambda w: w.window_s // DAY_S)}
    first, end = inputs.start_s // DAY_S, inputs.until_s // DAY_S
    miner, node = _by_day(found.miner), _by_day(found.node)
    online: dict[int, int] = defaultdict(int)
    for window_s in online_windows(found.miner.facts):
        online[window_s // DAY_S] += 1
    known = windows.keys() | {day for day in miner.keys() | node.keys() | online.keys() if first <= day < end}
    days = [
        _day(day * DAY_S, windows.get(day, []), (found.miner, miner[day]), (found.node, node[day]), online[day])
        for day in sorted(known)
    ]
    return Account(days, found.miner.registers, found.node.registers)


def _by_day(end: End) -> dict[int, list[Fact]]:
    facts: dict[int, list[Fact]] = defaultdict(list)
    for fact in end.facts:
        facts[fact.window_s // DAY_S].append(fact)
    return facts


def _day(
    day_s: int,
    windows: Sequence[Window],
    miner: tuple[End, Sequence[Fact]],
    node: tuple[End, Sequence[Fact]],
    online: int,
) -> LineDay:
    counting = [window.measured for window in windows if window.counts]
    return LineDay(
        day_s,
        sums_of(windows),
        len(counting),
        sum(w.sent_mws for w in counting),
        sum(w.received_mws for w in counting),
        _by_reason(windows, State.HELD),
        _by_reason(windows, State.DISPUTED),
        _reverse_mws(*miner),
        _reverse_mws(*node),
        online,
        sum(fact.hashes for fact in miner[1]),
        any(not window.counts and window.measured.has_energy for window in windows),
        "".join(f"{_row(window)}\n" for window in windows),
    )


def _reverse_mws(end: End, facts: Iterable[Fact]) -> int:
    return sum(fact.channel(end.channel).reverse_mws for fact in facts)


def _by_reason(windows: Iterable[Window], state: State) -> dict[int, int]:
    sums: dict[int, int] = defaultdict(int)
    for window in windows:
        if window.state is state:
            sums[int(window.reasons[0])] += max(window.measured.sent_mws, window.measured.received_mws)
    return dict(sums)


def _row(window: Window) -> str:
    w = window.measured
    reasons, dispute = (" ".join(str(int(r)) for r in found) for found in (window.reasons, window.dispute))
    return (
        f"{w.window_s},{w.sent_mws},{w.received_mws},{w.square_current},{w.expected_mws},{w.error_mws},"
        f"{w.edge_mws},{w.sent_dark_ms},{w.received_dark_ms},,,{window.state.value},{reasons},{dispute}"
    )
