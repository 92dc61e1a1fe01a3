"""From windows to pay: sums, statement, leaves. Pure; the audit runs the same code on the pack."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from maxgreen.chain.merkle import BATCH_LEAF, LINE_LEAF, MerkleTree
from maxgreen.chain.orders import Claim
from maxgreen.protocol.attestation import Attestation
from maxgreen.protocol.pack import canonical_json
from settlement.inputs import Inputs, LineBase, LineTerms
from settlement.replay import Fact, replay
from settlement.windows import (
    End,
    LineWindows,
    State,
    Window,
    count_runs,
    edge_term,
    line_end,
    line_windows,
    online_windows,
    period_start,
)

WINDOWS_HEADER: Final = (
    "window_s,sent_mws,received_mws,q,expected_mws,error_mws,state_before,reasons_before,state,reasons"
)
WEI_NUMERATOR: Final = 2_500
WEI_DENOMINATOR: Final = 9


@dataclass(frozen=True)
class Leaf:
    """What the chain is asked to pay for a line, and the attestations of its cuts."""

    until_s: int
    claim: Claim  # its proof is of the whole tree

    @property
    def line(self) -> bytes:
        """The line's id."""
        return self.claim.line

    @property
    def values(self) -> tuple[int, bytes, int, int, int, bytes, int, int]:
        """The leaf as the Merkle tree takes it."""
        return self.claim.leaf(self.until_s)


@dataclass(frozen=True)
class LineResult:
    """A line's part of the statement."""

    terms: LineTerms
    windows: LineWindows
    statement: dict[str, Any]
    leaf: Leaf | None  # None when nothing is newly counted


@dataclass(frozen=True)
class Derived:
    """All that follows from the inputs: the pack's output entries and the leaves."""

    lines: tuple[LineResult, ...]
    entries: dict[str, bytes]

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """The leaves of the lines with something to pay, by line."""
        return tuple(result.leaf for result in self.lines if result.leaf is not None)

    @property
    def total_mws(self) -> int:
        """What the lines of this settlement are due or were paid since they opened, all together."""
        return sum(max(int(r.statement["payable_total_mws"]), r.terms.paid_mws) for r in self.lines)

    @property
    def tree(self) -> MerkleTree:
        """The tree over the leaves; its root is the order's data root."""
        return MerkleTree.of(LINE_LEAF, [leaf.values for leaf in self.leaves])


def derive(inputs: Inputs) -> Derived:
    """Return what follows from the inputs, the same on every machine."""
    facts = {party.device: replay(inputs, party) for party in inputs.parties}
    results = []
    entries: dict[str, bytes] = {}
    for line in sorted(inputs.lines, key=lambda terms: terms.line):
        windows = line_windows(inputs, line, facts)
        result = _line_result(inputs, line, windows)
        results.append(result)
        entries[f"windows/{line.line.hex()}.csv"] = _windows_csv(inputs, line, windows.windows)
    entries["statement.json"] = canonical_json(
        {"period": inputs.period, "until": inputs.until_s, "lines": [result.statement for result in results]}
    )
    return Derived(tuple(results), entries)


def payable_total(base: LineBase, windows: Sequence[Window], peak_mw: int, interval_ms: int) -> int:
    """Return what is payable since the line opened, mW·s (settlement.md, 5)."""
    partial = base.partial_mws + sum(min(w.sent_mws, w.received_mws) for w in windows if w.state is State.PARTIAL)
    counted = [w for w in windows if w.state is State.COUNTED]
    sent = base.sent_mws + sum(w.sent_mws for w in counted)
    received = base.received_mws + sum(w.received_mws for w in counted)
    expected = base.expected_mws + sum(w.expected_mws for w in counted)
    runs = base.runs + count_runs((w.window_s for w in counted), base.last_counted_window)
    error = base.error_mws + sum(w.error_mws for w in counted) + edge_term(runs, peak_mw, interval_ms)
    return partial + max(0, min(received, sent - max(0, expected - error)))


def fold(base: LineBase, windows: Sequence[Window], until_s: int) -> LineBase:
    """Return the base after the windows before `until_s` are settled for good."""
    done = [w for w in windows if w.window_s < until_s]
    counted = [w for w in done if w.state is State.COUNTED]
    return LineBase(
        until_s=until_s,
        sent_mws=base.sent_mws + sum(w.sent_mws for w in counted),
        received_mws=base.received_mws + sum(w.received_mws for w in counted),
        expected_mws=base.expected_mws + sum(w.expected_mws for w in counted),
        error_mws=base.error_mws + sum(w.error_mws for w in counted),
        partial_mws=base.partial_mws + sum(min(w.sent_mws, w.received_mws) for w in done if w.state is State.PARTIAL),
        runs=base.runs + count_runs((w.window_s for w in counted), base.last_counted_window),
        last_counted_window=max((w.window_s for w in counted), default=base.last_counted_window),
    )


def mint_wei(payable_mws: int, efficiency_ppm: int, acc: int) -> int:
    """Return the wei that a payment mints, room not considered."""
    return (payable_mws * efficiency_ppm * WEI_NUMERATOR + acc) // WEI_DENOMINATOR


def _line_result(inputs: Inputs, line: LineTerms, found: LineWindows) -> LineResult:
    begin_s = period_start(inputs)
    total = payable_total(line.base, found.windows, found.peak_mw, found.interval_ms)
    payable = max(0, total - line.paid_mws)
    period = [w for w in found.windows if w.window_s >= begin_s]
    counting = [w for w in period if w.counts]
    counted = [w for w in period if w.state is State.COUNTED]
    sent, received = (sum(getattr(w, name) for w in counting) for name in ("sent_mws", "received_mws"))
    edges = edge_term(count_runs(w.window_s for w in counted), found.peak_mw, found.interval_ms)
    sent_cut, received_cut = (_cut_attestation(end, line_end(inputs, line)) for end in (found.miner, found.node))
    root = MerkleTree.of(BATCH_LEAF, [(digest,) for digest in _new_digests(inputs, line, found)]).root
    miner_facts = [f for f in found.miner.facts if begin_s <= f.window_s < inputs.until_s]
    online = {w for w in online_windows(found.miner.facts) if begin_s <= w < inputs.until_s}
    to_register = line.carried_mws + (sent_cut.register_mws if sent_cut else line.sent_register)
    received_to = line.carried_received_mws + (received_cut.register_mws if received_cut else line.received_register)
    efficiency_ppm = inputs.party(line.node).efficiency_ppm
    statement = {
        "line": line.line.hex(),
        "miner": str(line.miner),
        "node": str(line.node),
        "sent_mws": str(sent),
        "received_mws": str(received),
        "loss_mws": str(sent - received),
        "expected_loss_mws": str(sum(w.expected_mws for w in counting)),
        "error_mws": str(sum(w.error_mws for w in counting) + edges),
        "counted_windows": len(counting),
        "held": _by_reason(period, State.HELD),
        "disputed": _by_reason(period, State.DISPUTED),
        "payable_total_mws": str(total),
        "paid_before_mws": str(line.paid_mws),
        "payable_mws": str(payable),
        "mint_wei": str(mint_wei(payable, efficiency_ppm, line.acc)),
        "online_windows": len(online),
        "hashes": str(sum(fact.hashes for fact in miner_facts)),
        "to_register": str(to_register),
        "received_to": str(received_to),
        "batch_root": root.hex(),
    }
    leaf = None
    if payable and sent_cut is not None and received_cut is not None:
        leaf = Leaf(inputs.until_s, Claim(line.line, total, root, (), sent_cut, received_cut))
    return LineResult(line, found, statement, leaf)


def _cut_attestation(end: End, until_s: int) -> Attestation | None:
    cut: Fact | None = end.cut(until_s)
    if cut is None:
        return None
    return next(a for a in cut.batch.attestations if a.channel == end.channel)


def _new_digests(inputs: Inputs, line: LineTerms, found: LineWindows) -> list[bytes]:
    """Return the batches of counting windows that are not in the last paid order."""
    before = inputs.windows_before.get(line.line, {})
    digests: list[bytes] = []
    for window in found.windows:
        state, _ = before.get(window.window_s, ("", ""))
        paid = window.window_s < line.paid_until_s and state in {State.COUNTED, State.PARTIAL}
        if window.counts and not paid:
            digests += found.batches[window.window_s]
    return digests


def _by_reason(windows: Sequence[Window], state: State) -> dict[str, str]:
    sums: defaultdict[str, int] = defaultdict(int)
    for window in windows:
        if window.state is state:
            sums[str(int(window.reasons[0]))] += max(window.sent_mws, window.received_mws)
    return {reason: str(energy) for reason, energy in sorted(sums.items())}


def _windows_csv(inputs: Inputs, line: LineTerms, windows: Sequence[Window]) -> bytes:
    before = inputs.windows_before.get(line.line, {})
    rows = [WINDOWS_HEADER]
    for w in windows:
        state_before, reasons_before = before.get(w.window_s, ("", ""))
        reasons = " ".join(str(int(reason)) for reason in w.reasons)
        rows.append(
            f"{w.window_s},{w.sent_mws},{w.received_mws},{w.square_current},{w.expected_mws},{w.error_mws},"
            f"{state_before},{reasons_before},{w.state.value},{reasons}"
        )
    return ("\n".join(rows) + "\n").encode()
