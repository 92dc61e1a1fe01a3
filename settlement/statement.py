"""From windows to pay: a line's sums, statement and claim. Pure; the audit runs the same code on the evidence."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from maxgreen.chain.orders import Claim, Closing
from maxgreen.protocol.attestation import Attestation
from maxgreen.protocol.pack import PackError, canonical_json
from maxgreen.protocol.reasons import Reason
from maxgreen.verify.rules import Decision
from settlement.days import Account, LineDay, account_of
from settlement.evidence import Evidence
from settlement.inputs import WINDOWS, Inputs, LineBase, decision_json, entry
from settlement.loss import Measured
from settlement.sums import Sums
from settlement.windows import DAY_S, LineWindows, Window, line_end, line_windows, period_start, sums_of

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
class LineOutcome:
    """A line's statement, and what it follows from."""

    inputs: Inputs
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


@dataclass(frozen=True)
class LineResult(LineOutcome):
    """A line's statement, derived from all of its evidence."""

    windows: LineWindows


def derive(inputs: Inputs, evidence: Evidence) -> LineResult:
    """Return what follows from a line's inputs and evidence, the same on every machine."""
    line = inputs.line
    trouble = evidence.trouble((*inputs.keys(line.miner), *inputs.keys(line.node)))
    # of a line in trouble nothing is paid now, and the next close reads all of it again
    facts = dict.fromkeys((party.device for party in inputs.parties), ()) if trouble else evidence.facts
    found = line_windows(inputs, facts)
    outcome = settle(inputs, account_of(inputs, found), _decided(inputs, found), trouble)
    return LineResult(inputs, outcome.statement, outcome.cuts, outcome.entries, found)


def settle(inputs: Inputs, account: Account, decided: Sequence[Decision] = (), trouble: str = "") -> LineOutcome:
    """Return what a line is due for an account; `decided`: the decisions that it went by."""
    statement = _statement(inputs, account, decided, trouble)
    rows = _windows_before_csv(inputs) if trouble else _windows_csv(inputs, account.days)
    document = {"period": inputs.period, "until": inputs.until_s, **statement}
    cuts = _cuts(account, line_end(inputs)) if int(statement["payable_mws"]) else None
    return LineOutcome(inputs, statement, cuts, {WINDOWS: rows, STATEMENT: canonical_json(document)})


def fold(base: LineBase, windows: Sequence[Window], until_s: int) -> LineBase:
    """Return the base after the windows before `until_s`, a UTC midnight, are settled for good."""
    return LineBase(until_s, base.sums + sums_of(w for w in windows if w.window_s < until_s))


def mint_wei(payable_mws: int, efficiency_ppm: int, acc: int) -> int:
    """Return the wei that a payment mints, room not considered."""
    return (payable_mws * efficiency_ppm * WEI_NUMERATOR + acc) // WEI_DENOMINATOR


def _statement(inputs: Inputs, account: Account, decided: Sequence[Decision], trouble: str) -> dict[str, Any]:
    line, begin_s, end_s = inputs.line, period_start(inputs), line_end(inputs)
    period = [day for day in account.days if begin_s <= day.day_s < inputs.until_s]
    whole = sum((day.sums for day in account.days), line.base.sums)
    total = line.paid_mws if trouble else whole.payable_mws
    payable = max(0, total - line.paid_mws)
    sums = sum((day.sums for day in period), Sums())
    sent, received = sum(day.sent_mws for day in period), sum(day.received_mws for day in period)
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
        "counted_windows": sum(day.counted_windows for day in period),
        "held": _by_reason(day.held for day in period),
        "disputed": _by_reason(day.disputed for day in period),
        "sent_reverse_mws": str(sum(day.sent_reverse_mws for day in period)),
        "received_reverse_mws": str(sum(day.received_reverse_mws for day in period)),
        "payable_total_mws": str(total),
        "paid_before_mws": str(line.paid_mws),
        "payable_mws": str(payable),
        "mint_wei": str(mint_wei(payable, efficiency_ppm, line.acc)),
        "online_windows": sum(day.online_windows for day in period),
        "hashes": str(sum(day.hashes for day in period)),
        "to_register": str(account.sent.register_mws(end_s, line.known_sent)),
        "received_to": str(account.received.register_mws(end_s, line.known_received)),
        "decisions": [decision_json(decision) for decision in decided],
        "trouble": trouble,
    }


def _cuts(account: Account, end_s: int) -> Cuts | None:
    sent, received = account.sent.cut(end_s), account.received.cut(end_s)
    if sent is None or received is None:
        return None
    closings = (*account.sent.closings(end_s, miner_end=True), *account.received.closings(end_s, miner_end=False))
    return Cuts(sent, received, closings)


def _decided(inputs: Inputs, found: LineWindows) -> list[Decision]:
    """Return the decisions that speak of a batch of the pack, at either end."""
    return [
        decision
        for end in (found.miner, found.node)
        for decision in inputs.rules.decisions
        if any(fact.device == decision.device and decision.covers(fact.seq) for fact in end.facts)
    ]


def _by_reason(days: Iterable[Mapping[int, int]]) -> dict[str, str]:
    sums: Counter[int] = Counter()
    for day in days:
        sums.update(day)
    return {str(reason): str(energy) for reason, energy in sorted(sums.items(), key=lambda item: str(item[0]))}


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


def _windows_csv(inputs: Inputs, days: Sequence[LineDay]) -> bytes:
    before: dict[int, list[int]] = defaultdict(list)  # the windows of a day that stood before
    for window_s in inputs.windows_before:
        before[window_s // DAY_S * DAY_S].append(window_s)
    parts = [f"{WINDOWS_HEADER}\n"]
    for day in days:
        parts += _with_before(inputs.windows_before, day.rows) if day.day_s in before else [day.rows]
    return "".join(parts).encode()


def _with_before(before: Mapping[int, tuple[str, str]], rows: str) -> Iterator[str]:
    """Yield a day's rows with state and dispute as they stood before."""
    for row in rows.splitlines(keepends=True):
        window_s = int(row[: row.index(",")])
        numbers, after = row.split(",,,")
        yield f"{numbers},{','.join(before.get(window_s, ('', '')))},{after}"
