"""What an audit holds against the period before: sums, chain states, windows and decisions (P-PCK-1)."""

import hashlib
from collections.abc import Mapping, Sequence

from maxgreen.protocol.pack import MANIFEST, RUN
from settlement.audit_line import compare, read_line
from settlement.evidence import Evidence, Judge, Judged, RunTasks
from settlement.findings import Difference, Findings
from settlement.inputs import STATES_AFTER, Inputs, entry, read_states
from settlement.loss import WINDOW_S
from settlement.packs import Pack
from settlement.statement import LineResult, derive, fold
from settlement.sums import Sums


def check_base(inputs: Inputs, evidence: Evidence, previous: Pack | None, found: Findings, run_tasks: RunTasks) -> None:
    """Check what comes from earlier periods: sums, the chains' states, and how windows stood (P-PCK-1)."""
    line = inputs.line.line.hex()
    name = f"line {line[:8]}…"
    begun = [device for device, chain in evidence.chains.items() if chain[0].previous is not None]
    stood = any(state != ("", "") for state in inputs.windows_before.values())
    named = None if previous is None else previous.run.manifest(inputs.line.line)
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
    _check_windows_before(inputs, result, read_states(entries, STATES_AFTER))
    _check_start(inputs, before, evidence, evidence_before)
    histories = Histories()
    for device, chain in (*evidence_before.chains.items(), *evidence.chains.items()):
        histories.add(device, chain)
    for device, chain in evidence.chains.items():
        if chain[0].previous is not None and not _leads_on(device, chain[0], evidence_before):
            found.believe(
                f"{name}: the state of chain {device.hex()} before its first batch here (no earlier pack reaches it)"
            )
    found.ok(f"{name}: base, chain states and disputes follow from the previous pack")


def _check_windows_before(inputs: Inputs, before: LineResult, states: Mapping[int, tuple[str, str]]) -> None:
    """Check that windows stood as the previous pack has them, and that none is left out."""
    if inputs.windows_before != {w: states.get(w, ("", "")) for w in inputs.windows_before}:
        raise Difference("windows.csv: the states before are not the previous pack's")
    for window in before.windows.windows:
        w, says = window.window_s, window.measured.has_energy or bool(window.dispute)
        if says and w >= inputs.start_s and w not in inputs.windows_before:
            raise Difference(f"windows.csv: window {w} of the previous pack is left out")
        if w < inputs.start_s and window.measured.has_energy and not window.counts:
            raise Difference(f"{MANIFEST}: start: windows that did not count are left out")


def _check_start(inputs: Inputs, before: Inputs, evidence: Evidence, evidence_before: Evidence) -> None:
    """Check that what came or was decided on since the period before is listed, and that no segment is left out."""
    known = {(f.device, f.seq) for facts in evidence_before.facts.values() for f in facts}
    fresh = [d for d in inputs.rules.decisions if d not in before.rules.decisions]
    for fact in (f for found in (evidence, evidence_before) for facts in found.facts.values() for f in facts):
        decided = any(d.device == fact.device and d.covers(fact.seq) for d in fresh)
        if fact.dated and fact.window_s < inputs.start_s and (decided or (fact.device, fact.seq) not in known):
            what = "was decided on" if decided else "came"
            raise Difference(
                f"{MANIFEST}: start: batch {fact.seq} of device {fact.device.hex()} {what} since, and is before it"
            )
    context_s = max(limits.stuck_s for _, limits in inputs.rules.limits) + WINDOW_S
    for device, chain in evidence_before.chains.items():
        for judged in chain:
            reaches = any(f.dated and f.t0_ms >= (inputs.start_s - context_s) * 1000 for f in judged.facts)
            if reaches and judged.digest not in inputs.segments.get(device, ()):
                raise Difference(f"{MANIFEST}: segment {judged.digest.hex()} of the previous pack is left out")


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
