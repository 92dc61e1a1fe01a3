"""The audit: everything again from the evidence, line by line, and against the chain; the first difference has a name.

What it cannot check it says, in one list: what is still believed.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from maxgreen.chain.client import Chain
from maxgreen.chain.deployment import Deployment
from maxgreen.chain.merkle import LINE_LEAF, MerkleTree
from maxgreen.chain.orders import Claim
from maxgreen.errors import UsageError
from maxgreen.protocol.backend import BackendKeys, Beacon
from maxgreen.protocol.pack import MANIFEST, RUN, PackError
from maxgreen.protocol.reasons import Rejected
from settlement.audit_chain import Pinned, check_chain
from settlement.audit_order import check_order, read_order
from settlement.evidence import Evidence, Judge, RunTasks
from settlement.findings import Difference, Findings, Report
from settlement.inputs import STATES_AFTER, Inputs, entry, read_manifest, read_states
from settlement.packs import Pack
from settlement.periods import period_bounds
from settlement.run import Run, total_of
from settlement.statement import SIGNATURE, STATEMENT, LineResult, derive, fold
from settlement.sums import Sums

# what bytes that are no evidence can do to whoever reads them as such
_UNREADABLE: Final = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    StopIteration,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Audited:
    """A line whose evidence holds: what the chain is compared with."""

    inputs: Inputs
    entries: Mapping[str, bytes]  # those that the DAO can register
    beacons: Mapping[int, Beacon]
    claim: Claim | None


def audit(
    pack: Pack,
    *,
    previous: Pack | None = None,
    chain: Chain | None = None,
    pinned: Pinned | None = None,
    lines: Sequence[str] | None = None,
    run_tasks: RunTasks = map,
) -> Report:
    """Verify a pack; Difference or PackError names the first thing that does not hold.

    `pinned` says which contracts are meant, by something that does not come from the pack. `lines`: of which lines
    (ids in hex), where not of all. `run_tasks` is `map`, or one that uses more processors (settlement.engines).
    """
    try:
        return _audit(pack, previous, chain, pinned, lines, run_tasks)
    except (*_UNREADABLE, Rejected) as error:
        raise PackError(f"the pack's entries do not fit together: {type(error).__name__}: {error}") from error


def _audit(
    pack: Pack,
    previous: Pack | None,
    chain: Chain | None,
    pinned: Pinned | None,
    only: Sequence[str] | None,
    run_tasks: RunTasks,
) -> Report:
    found = Findings()
    run = _read_run(pack)
    if pinned is not None:
        pinned.check_network(str(run.document["network"]))
    wanted = sorted(pack.lines if only is None else only)
    audited = [_audit_line(pack, run, line, previous, found, run_tasks) for line in wanted]
    claims = {one.inputs.line.line: one.claim for one in audited if one.claim is not None}
    _check_run(run, wanted, claims, found)
    order = read_order(pack.order_data) if pack.order_data is not None else None
    if order is not None:
        own = [claim for claim in order.claims if only is None or claim.line.hex() in wanted]
        order = order.of(own)
        check_order(order, run, claims)
        found.ok(f"order: {len(order.claims)} leaves lead to its root, and its total is the statements'")
    elif claims:
        found.ok("no order yet: nothing was paid for this statement")
    if chain is not None and order is not None:
        if pinned is not None:
            pinned.check_contracts(order.addresses)
        else:
            found.believe("that these contracts are the deployment's: name it with --deployment")
        complete = len(wanted) == len(run.lines)
        check_chain(order, run, audited, Deployment(chain, order.addresses), found, complete=complete)
    else:
        what = "no order" if order is None else "no --rpc"
        found.believe(f"devices, lines, limits, keys and payment: not compared with the chain ({what})")
    return Report(
        period=run.period,
        network=str(run.document["network"]),
        contracts={} if order is None else order.contracts,
        order=None if order is None else order.number,
        payable_mws={one["line"]: int(one["payable_mws"]) for one in run.lines if one["line"] in wanted},
        checks=tuple(found.checks),
        believed=tuple(found.believed),
        statement=pack.run_data,
    )


def _read_run(pack: Pack) -> Run:
    run = pack.run
    _check_period(RUN, run.period, run.until_s)
    named = [one["line"] for one in run.lines]
    if named != sorted(set(named)):
        raise Difference(f"{RUN}: its lines are not sorted, or one is there twice")
    if run.total_mws != total_of(run.lines):
        raise Difference(f"{RUN}: total_mws is not its lines'")
    return run


def _check_period(name: str, period: str, until_s: int) -> None:
    try:
        end_s = period_bounds(period)[1]
    except UsageError as error:
        raise PackError(f"{name}: {error}") from error
    if until_s != end_s:
        raise Difference(f"{name}: {period} does not end at {str(until_s)[:40]}")


def _check_run(run: Run, wanted: Sequence[str], claims: Mapping[bytes, Claim], found: Findings) -> None:
    """Check that the lines' claims are what the run's root is over."""
    others = len(run.lines) - len(wanted)
    if others:
        found.believe(f"the statements of {others} other lines of {RUN}, whose evidence is not here")
        return
    tree = MerkleTree.of(LINE_LEAF, [claim.leaf(run.until_s) for _, claim in sorted(claims.items())])
    if run.document["count"] != len(claims) or run.document["root"] != (tree.root.hex() if claims else None):
        raise Difference(f"{RUN}: count and root are not those of its lines' leaves")
    found.ok(f"run: its {len(run.lines)} lines have their evidence here, and its root is over {len(claims)} leaves")


def _audit_line(
    pack: Pack, run: Run, line: str, previous: Pack | None, found: Findings, run_tasks: RunTasks
) -> Audited:
    try:
        return _checked_line(pack, run, line, previous, found, run_tasks)
    except Difference as error:
        raise Difference(f"line {line[:8]}…: {error}") from error
    except PackError as error:
        raise PackError(f"line {line[:8]}…: {error}") from error


def _checked_line(
    pack: Pack, run: Run, line: str, previous: Pack | None, found: Findings, run_tasks: RunTasks
) -> Audited:
    entries = pack.entries(line)
    inputs = _read_line(entries)
    said = next((one for one in run.lines if one["line"] == line), None)
    manifest = hashlib.sha256(entry(entries, MANIFEST)).digest()
    if said is None or said["manifest"] != manifest.hex():
        raise Difference(f"{MANIFEST}: its SHA-256 is not the one in {RUN}")
    if (inputs.network, inputs.period, inputs.until_s) != (run.document["network"], run.period, run.until_s):
        raise Difference(f"{MANIFEST}: of another network or period than {RUN}")
    if inputs.line.line.hex() != line:
        raise Difference(f"line.json: it is line {inputs.line.line.hex()}")
    judge = Judge(pack.segment, run_tasks)
    evidence = judge.evidence(inputs)
    result = _check_derived(inputs, evidence, entries, found)
    if {**result.statement, "manifest": manifest.hex()} != said:
        raise Difference(f"{RUN}: its statement of the line is another one")
    _check_base(inputs, evidence, previous, found, run_tasks)
    files = {name: entry(entries, name) for name in ("limits.json", "backend.json")}
    return Audited(inputs, files, evidence.beacons, result.claim(manifest))


def _read_line(entries: Mapping[str, bytes]) -> Inputs:
    """Read a line's inputs, whose bytes are those of the manifest, in the format's one form."""
    manifest = read_manifest(entries)
    _check_period(MANIFEST, manifest["period"], manifest["until"])
    files = manifest["files"]
    for name in sorted((set(entries) | set(files)) - {MANIFEST}):
        data = entry(entries, name)
        if name not in files:
            raise Difference(f"{name}: not in the manifest")
        if hashlib.sha256(data).hexdigest() != files[name]:
            raise Difference(f"{name}: its SHA-256 is not the manifest's")
    inputs = Inputs.from_entries(entries)
    for name, data in sorted(inputs.entries().items()):
        _compare(name, data, entry(entries, name))
    for name, value in inputs.head.items():
        if manifest[name] != value:
            raise Difference(f"{MANIFEST}: {name} is not in its one form")
    return inputs


def _check_derived(inputs: Inputs, evidence: Evidence, entries: Mapping[str, bytes], found: Findings) -> LineResult:
    """Derive the line again, and compare it with what its evidence says."""
    name = f"line {inputs.line.line.hex()[:8]}…"
    result = derive(inputs, evidence)
    said = f"{evidence.batches} batches: signatures, chain, registers, shares and attestations judged again"
    found.ok(f"{name}: {len(entries)} entries and {_count(inputs)} segments have their SHA-256; {said}")
    for entry_name, data in sorted(result.entries.items()):
        _compare(entry_name, data, entry(entries, entry_name))
    if trouble := result.statement["trouble"]:
        found.ok(f"{name} is in trouble, and is paid nothing: {trouble}")
    try:
        keys = BackendKeys(inputs.backend_keys, inputs.network)
        keys.open(entry(entries, SIGNATURE), "statement", detached_payload=entries[STATEMENT])
    except (Rejected, ValueError) as error:
        raise Difference(f"{SIGNATURE}: {error}") from error
    receipts = sum(evidence.receipts.values())
    found.ok(
        f"{name}: windows and statement follow, signed by the backend; nothing that {receipts} receipts name is missing"
    )
    without = sorted(device.hex() for device, count in evidence.receipts.items() if not count)
    if without:
        found.believe(f"that all batches of {', '.join(without)} are here: there is no receipt of them")
    if inputs.waiting:
        found.believe(f"{name}: that {sum(map(len, inputs.waiting.values()))} batches wait behind holes")
    if inputs.rules.decisions:
        found.believe(
            f"{name}: {len(inputs.rules.decisions)} recorded decisions (decisions.json has who, when and why)"
        )
    return result


def _count(inputs: Inputs) -> int:
    return sum(map(len, inputs.segments.values()))


def _compare(name: str, expected: bytes, found: bytes) -> None:
    if expected == found:
        return
    rows = zip(expected.splitlines(), found.splitlines(), strict=False)
    number, (want, have) = next(
        ((k, pair) for k, pair in enumerate(rows, 1) if pair[0] != pair[1]), (0, (b"another length", b""))
    )
    raise Difference(f"{name}: line {number}: the evidence gives {want[:120]!r}, the pack says {have[:120]!r}")


def _check_base(
    inputs: Inputs, evidence: Evidence, previous: Pack | None, found: Findings, run_tasks: RunTasks
) -> None:
    """Check what comes from earlier periods: sums, the chains' states, and how windows stood (P-PCK-1)."""
    name = f"line {inputs.line.line.hex()[:8]}…"
    stood = any(state != ("", "") for state in inputs.windows_before.values())
    begun = [device for device, first in evidence.firsts.items() if first.previous is not None]
    if inputs.line.base.sums == Sums() and not stood and not begun:
        found.ok(f"{name}: its evidence begins where its chains and the line do")
        return
    if previous is None or (inputs.previous is None and begun):
        found.believe(
            f"{name}: sums, chain states and disputes of before this period (name the one before with --previous)"
        )
        return
    if inputs.previous is None:
        raise Difference(f"{MANIFEST}: no line of an earlier period, and yet sums or states of one")
    entries = previous.entries(inputs.line.line.hex())
    if inputs.previous != hashlib.sha256(entry(entries, MANIFEST)).digest():
        raise Difference(f"{MANIFEST}: 'previous' is not the SHA-256 of the line's manifest in the previous pack")
    before = _read_line(entries)
    evidence_before = Judge(previous.segment, run_tasks).evidence(before)
    result = derive(before, evidence_before)
    for entry_name, data in result.entries.items():
        _compare(f"the previous pack's {entry_name}", data, entry(entries, entry_name))
    left = [w for w in result.windows.windows if not w.counts and w.measured.has_energy]
    if any(w.window_s < inputs.start_s for w in left):
        raise Difference(f"{MANIFEST}: start: windows that did not count are left out")
    # or it adds up again all that there is since the line opened
    whole = inputs.line.base.sums == Sums() and inputs.start_s <= inputs.line.sent_base.time_s
    if inputs.line.base != fold(before.line.base, result.windows.windows, inputs.start_s) and not whole:
        raise Difference("line.json: the base is not the previous pack's sums")
    states = read_states(entries, STATES_AFTER)
    if inputs.windows_before != {w: states.get(w, ("", "")) for w in inputs.windows_before}:
        raise Difference("windows.csv: the states before are not the previous pack's")
    for device in begun:
        if not _leads_on(device, inputs, before, evidence, evidence_before):
            found.believe(
                f"{name}: the state of chain {device.hex()} before its first batch here (no earlier pack reaches it)"
            )
    found.ok(f"{name}: base, chain states and disputes follow from the previous pack")


def _leads_on(device: bytes, inputs: Inputs, before: Inputs, evidence: Evidence, evidence_before: Evidence) -> bool:
    """Tell whether the previous pack reaches the first segment of a device; Difference when it leads elsewhere."""
    digests, first = before.segments.get(device, ()), evidence.firsts[device]
    if inputs.segments[device][0] in digests:
        return True
    if not digests or digests[-1] != first.previous:
        return False
    if evidence_before.lasts[device].end != first.start:
        raise Difference(
            f"chain {device.hex()}: the previous pack leads to another state at seq {first.start.next_seq}"
        )
    return True
