"""From windows to pay: a line's sums, statement and claim. Pure; the audit runs the same code on the evidence."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from maxgreen.chain.orders import Claim, Closing
from maxgreen.protocol.attestation import Attestation
from maxgreen.protocol.pack import PackError, canonical_json
from maxgreen.protocol.reasons import Reason
from settlement.ends import End
from settlement.evidence import Evidence
from settlement.inputs import WINDOWS, Inputs, LineBase, decision_json, entry
from settlement.loss import Measured
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
STATEMENT: Final = "statement.json"
SIGNATURE: Final = "statement.cose"
WEI_NUMERATOR: Final = 2_500
WEI_DENOMINATOR: Final = 9


@dataclass(frozen=True)
class Cuts:
    """The attestations that a line is claimed with: both ends' cuts, and the last ones of the keys before theirs."""

    sent: Attestation
    received: Attestation
    closings: tuple[Closing, ...]


@dataclass(frozen=True)
class LineResult:
    """A line's statement, and what it follows from."""

    inputs: Inputs
    windows: LineWindows
    statement: dict[str, Any]
    cuts: Cuts | None  # None when nothing can be claimed
    entries: dict[str, bytes]  # the output entries of the line's evidence

    @property
    def line(self) -> bytes:
        """The line's id."""
        return self.inputs.line.line

    def claim(self, manifest: bytes) -> Claim | None:
        """Return what the chain is asked to pay, without a proof; `manifest`: the SHA-256 of the line's manifest."""
        if self.cuts is None:
            return None
        total_mws = int(self.statement["payable_total_mws"])
        return Claim(self.line, total_mws, manifest, (), self.cuts.sent, self.cuts.received, self.cuts.closings)


def derive(inputs: Inputs, evidence: Evidence) -> LineResult:
    """Return what follows from a line's inputs and evidence, the same on every machine."""
    line = inputs.line
    trouble = evidence.trouble((*inputs.keys(line.miner), *inputs.keys(line.node)))
    # of a line in trouble nothing is paid now, and the next close reads all of it again
    facts = dict.fromkeys((party.device for party in inputs.parties), ()) if trouble else evidence.facts
    found = line_windows(inputs, facts)
    statement = _statement(inputs, found, trouble)
    rows = _windows_before_csv(inputs) if trouble else _windows_csv(inputs, found.windows)
    document = {"period": inputs.period, "until": inputs.until_s, **statement}
    cuts = _cuts(inputs, found) if int(statement["payable_mws"]) else None
    return LineResult(inputs, found, statement, cuts, {WINDOWS: rows, STATEMENT: canonical_json(document)})


def fold(base: LineBase, windows: Sequence[Window], until_s: int) -> LineBase:
    """Return the base after the windows before `until_s`, a UTC midnight, are settled for good."""
    return LineBase(until_s, base.sums + sums_of(w for w in windows if w.window_s < until_s))


def mint_wei(payable_mws: int, efficiency_ppm: int, acc: int) -> int:
    """Return the wei that a payment mints, room not considered."""
    return (payable_mws * efficiency_ppm * WEI_NUMERATOR + acc) // WEI_DENOMINATOR


def _statement(inputs: Inputs, found: LineWindows, trouble: str) -> dict[str, Any]:
    line, begin_s, end_s = inputs.line, period_start(inputs), line_end(inputs)
    total = line.paid_mws if trouble else (line.base.sums + sums_of(found.windows)).payable_mws
    payable = max(0, total - line.paid_mws)
    period = [w for w in found.windows if w.window_s >= begin_s]
    counting = [w.measured for w in period if w.counts]
    sums = sums_of(period)
    sent, received = sum(w.sent_mws for w in counting), sum(w.received_mws for w in counting)
    miner_facts = [f for f in found.miner.facts if begin_s <= f.window_s < inputs.until_s]
    online = {w for w in online_windows(found.miner.facts) if begin_s <= w < inputs.until_s}
    efficiency_ppm = inputs.party(line.node).efficiency_ppm
    return {
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
        "sent_reverse_mws": str(_reverse_mws(found.miner, begin_s, inputs.until_s)),
        "received_reverse_mws": str(_reverse_mws(found.node, begin_s, inputs.until_s)),
        "payable_total_mws": str(total),
        "paid_before_mws": str(line.paid_mws),
        "payable_mws": str(payable),
        "mint_wei": str(mint_wei(payable, efficiency_ppm, line.acc)),
        "online_windows": len(online),
        "hashes": str(sum(fact.hashes for fact in miner_facts)),
        "to_register": str(found.miner.register_mws(end_s, line.known_sent)),
        "received_to": str(found.node.register_mws(end_s, line.known_received)),
        "decisions": _decisions(inputs, (found.miner, found.node)),
        "trouble": trouble,
    }


def _cuts(inputs: Inputs, found: LineWindows) -> Cuts | None:
    end_s = line_end(inputs)
    sent, received = _attested(found.miner, end_s), _attested(found.node, end_s)
    if sent is None or received is None:
        return None
    closings = (*found.miner.closings(end_s, miner_end=True), *found.node.closings(end_s, miner_end=False))
    return Cuts(sent, received, closings)


def _reverse_mws(end: End, begin_s: int, until_s: int) -> int:
    return sum(fact.channel(end.channel).reverse_mws for fact in end.facts if begin_s <= fact.window_s < until_s)


def _attested(end: End, until_s: int) -> Attestation | None:
    cut = end.cut(until_s)
    return None if cut is None else end.attestation(cut)


def _decisions(inputs: Inputs, ends: tuple[End, End]) -> list[dict[str, Any]]:
    """Return the decisions that speak of a batch of the pack, at either end."""
    return [
        decision_json(decision)
        for end in ends
        for decision in inputs.rules.decisions
        if any(fact.device == decision.device and decision.covers(fact.seq) for fact in end.facts)
    ]


def _by_reason(windows: Sequence[Window], state: State) -> dict[str, str]:
    sums: defaultdict[str, int] = defaultdict(int)
    for window in windows:
        if window.state is state:
            sums[str(int(window.reasons[0]))] += max(window.measured.sent_mws, window.measured.received_mws)
    return {reason: str(energy) for reason, energy in sorted(sums.items())}


def read_windows(entries: Mapping[str, bytes]) -> tuple[Window, ...]:
    """Return a line's windows as its evidence has them, without what no sum needs; PackError when they are none."""
    try:
        header, *rows = entry(entries, WINDOWS).decode("ascii").splitlines()
        if header != WINDOWS_HEADER:
            raise PackError(f"{WINDOWS}: its header is not {WINDOWS_HEADER}")
        return tuple(_read_window(*row.split(",")) for row in rows)
    except (TypeError, ValueError) as error:
        raise PackError(f"{WINDOWS}: not the windows of a line: {error}") from error


def _read_window(*values: str) -> Window:
    *numbers, _, _, _, reasons, dispute = values
    window_s, sent, received, square, expected, error, edge, sent_dark_ms, received_dark_ms = map(int, numbers)
    return Window(
        Measured(
            window_s, sent, received, square, expected, error, edge, sent_dark_ms, received_dark_ms,
            sent_unmet_mws=0, received_unmet_mws=0, metered_ms=0,
        ),
        tuple(Reason(int(number)) for number in reasons.split()),
        tuple(Reason(int(number)) for number in dispute.split()),
    )  # fmt: skip


def _windows_before_csv(inputs: Inputs) -> bytes:
    """Return the windows of a line in trouble: as they stood before, nothing of them known."""
    rows = [
        f"{w},0,0,0,0,0,0,0,0,{state},{dispute},{state},,{dispute}"
        for w, (state, dispute) in sorted(inputs.windows_before.items())
    ]
    return ("\n".join([WINDOWS_HEADER, *rows]) + "\n").encode()


def _windows_csv(inputs: Inputs, windows: Sequence[Window]) -> bytes:
    before = inputs.windows_before
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
