"""What an audit holds against the period before: sums, chain states, windows and decisions (P-PCK-1)."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from maxgreen.protocol.pack import MANIFEST, RUN
from settlement.audit_line import compare, read_line
from settlement.evidence import Evidence, Judge, Judged, RunTasks
from settlement.findings import Difference, Findings
from settlement.inputs import STATES_AFTER, Inputs, entry, read_states
from settlement.loss import WINDOW_S
from settlement.packs import Pack
from settlement.statement import LineResult, derive, fold
from settlement.sums import Sums

_STAYS: Final = ("sent_base", "received_base", "resistance_uohm", "loss_ppm", "max_loss_ppm")


def check_base(inputs: Inputs, evidence: Evidence, previous: Pack | None, found: Findings, run_tasks: RunTasks) -> None:
    """Check what comes from earlier periods: sums, the chains' states, and how windows stood (P-PCK-1)."""
    line = inputs.line.line.hex()
    name = f"line {line[:8]}…"
    begun = [device for device, chain in evidence.chains.items() if chain[0].previous is not None]
    stood = any(state != ("", "") for state in inputs.windows_before.values())
    said = None if previous is None else previous.run.by_line.get(line)
    named = None if said is None else bytes.fromhex(said["manifest"])
    if previous is not None and named != inputs.previous:
        raise Difference(f"{MANIFEST}: 'previous' is not the SHA-256 of the line's manifest in the previous run")
    if inputs.previous is None and (inputs.line.base.sums != Sums() or stood):
        raise Difference(f"{MANIFEST}: no earlier period has the line, and yet there are sums or states of one")
    if inputs.previous is None and not begun:
        found.ok(f"{name}: its evidence begins where its chains and the line do")
    elif inputs.previous is None:
        found.believe(f"{name}: the states of chains {', '.join(sorted(d.hex() for d in begun))} when it was opened")
    elif previous is None or line not in previous.lines:
        what = "sums, chain states and disputes of before this period"
        found.believe(f"{name}: {what} (--previous names the one before)")
    else:
        _check_follows(inputs, evidence, previous, found, run_tasks)


def _check_follows(inputs: Inputs, evidence: Evidence, previous: Pack, found: Findings, run_tasks: RunTasks) -> None:
    """Check that a line goes on from the period before, whose evidence is derived again, too."""
    name = f"line {inputs.line.line.hex()[:8]}…"
    entries = previous.entries(inputs.line.line.hex())
    if inputs.previous != hashlib.sha256(entry(entries, MANIFEST)).digest():
        raise Difference(f"the previous pack's {MANIFEST}: its SHA-256 is not the one in its {RUN}")
    before = read_line(entries)
    evidence_before = Judge(previous.segment, run_tasks).evidence(before)
    result = derive(before, evidence_before)
    for entry_name, data in result.entries.items():
        compare(f"the previous pack's {entry_name}", data, entry(entries, entry_name))
    # or it adds up again all that there is since the line opened
    whole = inputs.line.base.sums == Sums() and inputs.start_s <= inputs.line.sent_base.time_s
    if inputs.start_s < before.start_s and not whole:
        raise Difference(f"{MANIFEST}: start: it lies before the previous pack's, and the base has sums of those days")
    if inputs.line.base != fold(before.line.base, result.windows.windows, inputs.start_s) and not whole:
        raise Difference("line.json: the base is not the previous pack's sums")
    _check_terms(inputs, before)
    for believed in _check_windows_before(inputs, result, read_states(entries, STATES_AFTER)):
        found.believe(f"{name}: {believed}")
    for believed in _check_start(inputs, before, evidence, evidence_before, whole=whole):
        found.believe(f"{name}: {believed}")
    histories = Histories()
    for device, chain in (*evidence_before.chains.items(), *evidence.chains.items()):
        histories.add(device, chain)
    for device, chain in evidence.chains.items():
        if chain[0].previous is not None and not _leads_on(device, chain[0], evidence_before):
            seq, there = chain[0].start.next_seq, evidence_before.chains.get(device)
            last = there[-1].end.next_seq if there else 0
            between = f"; batches {last} to {seq - 1} are in neither pack" if there and last < seq else ""
            found.believe(f"{name}: the state of chain {device.hex()} before its batch {seq}{between}")
    found.ok(f"{name}: base, chain states and disputes follow from the previous pack")


def _check_windows_before(inputs: Inputs, before: LineResult, states: Mapping[int, tuple[str, str]]) -> Iterator[str]:
    """Check that windows stood as the previous pack has them, and that none is left out; yield what is believed."""
    if inputs.windows_before != {w: states.get(w, ("", "")) for w in inputs.windows_before}:
        raise Difference("windows.csv: the states before are not the previous pack's")
    counts = {party.device: (party.record.until_ms, party.record.lost) for party in before.inputs.parties}
    # what a key measured may count no more since the registry has it otherwise
    changed = any(counts.get(p.device, (None, False)) != (p.record.until_ms, p.record.lost) for p in inputs.parties)
    for window in before.windows.windows:
        w, says = window.window_s, window.measured.has_energy or bool(window.dispute)
        if w < inputs.start_s and window.measured.has_energy and not window.counts:
            raise Difference(f"{MANIFEST}: start: windows that did not count are left out")
        if says and w >= inputs.start_s and w not in inputs.windows_before:
            if not changed:
                raise Difference(f"windows.csv: window {w} of the previous pack is left out")
            yield f"that window {w} is empty since a key counts otherwise than before"


def _check_start(
    inputs: Inputs, before: Inputs, evidence: Evidence, evidence_before: Evidence, *, whole: bool
) -> Iterator[str]:
    """Check that what came or was decided on since the period before is listed, and that no segment is left out.

    Yield what cannot be checked.
    """
    if inputs.start_s > before.until_s:
        raise Difference(f"{MANIFEST}: start: days since the period before are left out")
    known = {(f.device, f.seq) for chain in evidence_before.chains.values() for judged in chain for f in judged.facts}
    reached = {device: chain[0].start.next_seq for device, chain in evidence_before.chains.items()}
    fresh = [d for d in inputs.rules.decisions if d not in before.rules.decisions]
    for fact in (f for found in (evidence, evidence_before) for facts in found.facts.values() for f in facts):
        decided = any(d.device == fact.device and d.covers(fact.seq) for d in fresh)
        # what is older than the evidence of then is seen now since more of the past is looked at
        came = (fact.device, fact.seq) not in known and fact.seq >= reached.get(fact.device, fact.seq + 1)
        if fact.dated and fact.window_s < inputs.start_s and (decided or came):
            what = "was decided on" if decided else "came"
            batch = f"batch {fact.seq} of device {fact.device.hex()}"
            raise Difference(f"{MANIFEST}: start: {batch} {what} since, and is before it")
    for decision in fresh:
        chain = evidence.chains.get(decision.device)
        if chain and decision.from_seq < chain[0].start.next_seq and not whole:
            batches = f"batches {decision.from_seq} to {chain[0].start.next_seq - 1} of device {decision.device.hex()}"
            yield f"that the decision on {batches}, which are not here, changes nothing that was counted"
    context_s = max(limits.stuck_s for _, limits in inputs.rules.limits) + WINDOW_S
    for device, chain in evidence_before.chains.items():
        for judged in chain:
            reaches = any(f.dated and f.t0_ms >= (inputs.start_s - context_s) * 1000 for f in judged.facts)
            if reaches and judged.digest not in inputs.segments.get(device, ()):
                raise Difference(f"{MANIFEST}: segment {judged.digest.hex()} of the previous pack is left out")


def _check_terms(inputs: Inputs, before: Inputs) -> None:
    """Check that what held before holds still: the line's terms, its devices, decisions, and limits of then."""
    for field in _STAYS:
        if getattr(inputs.line, field) != getattr(before.line, field):
            raise Difference(f"line.json: {field} is not the previous pack's")
    if before.line.closed_s and inputs.line.closed_s != before.line.closed_s:
        raise Difference("line.json: closed is not the previous pack's")
    if inputs.line.paid_mws < before.line.paid_mws:
        raise Difference("line.json: paid_mws is less than in the previous pack")
    parties = {party.device: party for party in inputs.parties}
    for party in before.parties:
        now = parties.get(party.device)
        statuses = party.record.statuses
        if now is None or now.channels != party.channels or now.record.statuses[: len(statuses)] != statuses:
            raise Difference(f"devices.json: device {party.device.hex()} is not what the previous pack has")
    if lost := [d for d in before.rules.decisions if d not in inputs.rules.decisions]:
        said = f"{lost[0].action.value} of batches {lost[0].from_seq} to {lost[0].to_seq}"
        raise Difference(f"decisions.json: {said} of device {lost[0].device.hex()} is left out")
    then_ms = before.until_s * 1000
    was, now_ = ([entry for entry in one.rules.limits if entry[0] < then_ms] for one in (before, inputs))
    if was != now_:
        raise Difference("limits.json: the limits of before are not the previous pack's")


class Histories:
    """The segments of chains, wherever they are named: a chain has one history."""

    def __init__(self) -> None:
        self._spans: dict[bytes, dict[bytes, tuple[int, int]]] = {}  # by device, by segment: from which seq to which

    def add(self, device: bytes, chain: Sequence[Judged]) -> None:
        """Difference when a segment holds seqs that another one of the device holds too."""
        known = self._spans.setdefault(device, {})
        for judged in chain:
            begin, end = judged.start.next_seq, judged.end.next_seq
            for digest, (first, last) in known.items():
                if digest != judged.digest and begin < last and first < end:
                    both = f"segments {digest.hex()} and {judged.digest.hex()}"
                    raise Difference(f"device {device.hex()}: {both} are two histories of it")
            known[judged.digest] = begin, end


def _leads_on(device: bytes, first: Judged, before: Evidence) -> bool:
    """Tell whether the previous pack reaches the first segment of a device; Difference when it leads elsewhere."""
    for judged in before.chains.get(device, ()):
        if judged.digest == first.digest:
            return True
        if judged.digest == first.previous:
            if judged.end != first.start:
                raise Difference(
                    f"chain {device.hex()}: the previous pack leads to another state at seq {first.start.next_seq}"
                )
            return True
    return False
