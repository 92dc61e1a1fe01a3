"""From windows to pay: sums, statement, leaves. Pure; the audit runs the same code on the pack."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from maxgreen.chain.merkle import BATCH_LEAF, LINE_LEAF, MerkleTree
from maxgreen.chain.orders import Claim
from maxgreen.protocol.attestation import Attestation
from maxgreen.protocol.pack import canonical_json
from settlement.ends import End
from settlement.inputs import Inputs, LineBase, LineTerms, decision_json
from settlement.replay import Replayed, replay
from settlement.windows import (
    LineWindows,
    State,
    Window,
    line_end,
    line_windows,
    online_windows,
    period_start,
    sums_of,
)

WINDOWS_HEADER: Final = (
    "window_s,sent_mws,received_mws,q,expected_mws,error_mws,edge_mws,sent_dark_ms,received_dark_ms,"
    "state_before,dispute_before,state,reasons,dispute"
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

    inputs: Inputs
    lines: tuple[LineResult, ...]
    entries: dict[str, bytes]

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """The leaves of the lines with something to pay, by line."""
        return tuple(result.leaf for result in self.lines if result.leaf is not None)

    @property
    def claims(self) -> list[Claim]:
        """The claims of all leaves, with their proofs."""
        tree = self.tree
        return [replace(leaf.claim, proof=tuple(tree.proof(number))) for number, leaf in enumerate(self.leaves)]

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
    replayed = replay(inputs)
    results = []
    entries: dict[str, bytes] = {}
    for line in sorted(inputs.lines, key=lambda terms: terms.line):
        result = _line_result(inputs, line, replayed)
        results.append(result)
        listed = result.windows.windows
        rows = _windows_before_csv(inputs, line) if result.statement["trouble"] else _windows_csv(inputs, line, listed)
        entries[f"windows/{line.line.hex()}.csv"] = rows
    entries["statement.json"] = canonical_json(
        {"period": inputs.period, "until": inputs.until_s, "lines": [result.statement for result in results]}
    )
    return Derived(inputs, tuple(results), entries)


def fold(base: LineBase, windows: Sequence[Window], until_s: int) -> LineBase:
    """Return the base after the windows before `until_s`, a UTC midnight, are settled for good."""
    return LineBase(until_s, base.sums + sums_of(w for w in windows if w.window_s < until_s))


def mint_wei(payable_mws: int, efficiency_ppm: int, acc: int) -> int:
    """Return the wei that a payment mints, room not considered."""
    return (payable_mws * efficiency_ppm * WEI_NUMERATOR + acc) // WEI_DENOMINATOR


def _line_result(inputs: Inputs, line: LineTerms, replayed: Replayed) -> LineResult:
    trouble = replayed.trouble((*inputs.keys(line.miner), *inputs.keys(line.node)))
    if trouble:  # nothing of it is paid now, and the next close reads all of it again
        replayed = Replayed(dict.fromkeys((party.device for party in inputs.parties), ()), {})
    found = line_windows(inputs, line, replayed.facts)
    begin_s = period_start(inputs)
    total = line.paid_mws if trouble else (line.base.sums + sums_of(found.windows)).payable_mws
    payable = max(0, total - line.paid_mws)
    period = [w for w in found.windows if w.window_s >= begin_s]
    counting = [w.measured for w in period if w.counts]
    sums = sums_of(period)
    sent, received = sum(w.sent_mws for w in counting), sum(w.received_mws for w in counting)
    end_s = line_end(inputs, line)
    root = MerkleTree.of(BATCH_LEAF, [(digest,) for digest in _new_digests(inputs, line, found)]).root
    miner_facts = [f for f in found.miner.facts if begin_s <= f.window_s < inputs.until_s]
    online = {w for w in online_windows(found.miner.facts) if begin_s <= w < inputs.until_s}
    efficiency_ppm = inputs.party(line.node).efficiency_ppm
    statement = {
        "line": line.line.hex(),
        "miner": str(line.miner),
        "node": str(line.node),
        "sent_mws": str(sent),
        "received_mws": str(received),
        "loss_mws": str(sent - received),
        "expected_loss_mws": str(sums.expected_mws),
        "error_mws": str(sums.error_mws),
        "counted_windows": len(counting),
        "held": _by_reason(period, State.HELD),
        "disputed": _by_reason(period, State.DISPUTED),
        "payable_total_mws": str(total),
        "paid_before_mws": str(line.paid_mws),
        "payable_mws": str(payable),
        "mint_wei": str(mint_wei(payable, efficiency_ppm, line.acc)),
        "online_windows": len(online),
        "hashes": str(sum(fact.hashes for fact in miner_facts)),
        "to_register": str(found.miner.register_mws(end_s, line.known_sent)),
        "received_to": str(found.node.register_mws(end_s, line.known_received)),
        "batch_root": root.hex(),
        "decisions": _decisions(inputs, (found.miner, found.node)),
        "trouble": trouble,
    }
    leaf = None
    sent_cut, received_cut = _attested(found.miner, end_s), _attested(found.node, end_s)
    if payable and sent_cut is not None and received_cut is not None:
        closings = (*found.miner.closings(end_s, miner_end=True), *found.node.closings(end_s, miner_end=False))
        leaf = Leaf(inputs.until_s, Claim(line.line, total, root, (), sent_cut, received_cut, closings))
    return LineResult(line, found, statement, leaf)


def _attested(end: End, until_s: int) -> Attestation | None:
    cut = end.cut(until_s)
    return None if cut is None else end.attestation(cut)


def _new_digests(inputs: Inputs, line: LineTerms, found: LineWindows) -> list[bytes]:
    """Return the batches of counting windows that are not in the last paid order."""
    before = inputs.windows_before.get(line.line, {})
    digests: list[bytes] = []
    for window in found.windows:
        state, _ = before.get(window.window_s, ("", ""))
        paid = window.window_s < line.paid_until_s and state == State.COUNTED
        if window.counts and not paid:
            digests += found.batches[window.window_s]
    return digests


def _decisions(inputs: Inputs, ends: tuple[End, End]) -> list[dict[str, Any]]:
    """Return the decisions that speak of a batch of the pack, at either end."""
    return [
        decision_json(decision)
        for end in ends
        for decision in inputs.rules.decisions
        if any(fact.party.device == decision.device and decision.covers(fact.batch.seq) for fact in end.facts)
    ]


def _by_reason(windows: Sequence[Window], state: State) -> dict[str, str]:
    sums: defaultdict[str, int] = defaultdict(int)
    for window in windows:
        if window.state is state:
            sums[str(int(window.reasons[0]))] += max(window.measured.sent_mws, window.measured.received_mws)
    return {reason: str(energy) for reason, energy in sorted(sums.items())}


def _windows_before_csv(inputs: Inputs, line: LineTerms) -> bytes:
    """Return the windows of a line in trouble: as they stood before, nothing of them known."""
    before = inputs.windows_before.get(line.line, {})
    rows = [
        f"{w},0,0,0,0,0,0,0,0,{state},{dispute},{state},,{dispute}" for w, (state, dispute) in sorted(before.items())
    ]
    return ("\n".join([WINDOWS_HEADER, *rows]) + "\n").encode()


def _windows_csv(inputs: Inputs, line: LineTerms, windows: Sequence[Window]) -> bytes:
    before = inputs.windows_before.get(line.line, {})
    rows = [WINDOWS_HEADER]
    for window in windows:
        w = window.measured
        state_before, dispute_before = before.get(w.window_s, ("", ""))
        reasons, dispute = (" ".join(str(int(r)) for r in found) for found in (window.reasons, window.dispute))
        rows.append(
            f"{w.window_s},{w.sent_mws},{w.received_mws},{w.square_current},{w.expected_mws},{w.error_mws},"
            f"{w.edge_mws},{w.sent_dark_ms},{w.received_dark_ms},"
            f"{state_before},{dispute_before},{window.state.value},{reasons},{dispute}"
        )
    return ("\n".join(rows) + "\n").encode()
