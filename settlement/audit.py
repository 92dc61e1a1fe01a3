"""The audit: everything again from the evidence, line by line, and against the chain; the first difference has a name.

What it cannot check it says, in one list: what is still believed.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from maxgreen.chain.client import Chain
from maxgreen.chain.deployment import Deployment
from maxgreen.chain.merkle import LINE_LEAF, MerkleTree
from maxgreen.chain.orders import Claim, Ends
from maxgreen.protocol.backend import BackendKeys, Beacon
from maxgreen.protocol.pack import MANIFEST, RUN, PackError
from maxgreen.protocol.reasons import Rejected
from maxgreen.verify.rules import Decision
from maxgreen.verify.segment import segment_name
from settlement.audit_base import Histories, check_base
from settlement.audit_chain import Pinned, check_chain
from settlement.audit_line import check_period, compare, read_line
from settlement.audit_order import check_order, read_order
from settlement.evidence import Evidence, Judge, Judged, RunTasks
from settlement.findings import Difference, Findings, Report
from settlement.inputs import Inputs, Party, entry
from settlement.packs import Pack
from settlement.run import Run, total_of
from settlement.statement import SIGNATURE, STATEMENT, LineResult, derive

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
    chains: Mapping[bytes, Sequence[Judged]]  # without their facts
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
    if previous is not None and run.document["previous"] != previous.run.digest.hex():
        raise Difference(f"{RUN}: its 'previous' is not the run of the previous pack")
    if previous is not None and (lost := {one["line"] for one in previous.run.lines} - {x["line"] for x in run.lines}):
        raise Difference(f"{RUN}: line {min(lost)} of the previous run is left out")
    wanted = sorted(set(pack.lines if only is None else only))
    audited = [_audit_line(pack, run, line, previous, found, run_tasks) for line in wanted]
    _check_together(audited)
    named = {segment_name(d) for one in audited for chain in one.inputs.segments.values() for d in chain}
    if spare := sorted(pack.segments - named) if only is None else ():
        raise Difference(f"{spare[0]}: no manifest names it")
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


def _check_together(audited: Sequence[Audited]) -> None:
    """Check that lines tell one story of the devices, decisions and rules that they share."""
    histories, beacons = Histories(), dict[int, Beacon]()
    parties: dict[bytes, tuple[Party, list[Decision]]] = {}
    for one in audited:
        for device, chain in one.chains.items():
            histories.add(device, chain)
        for beacon in one.beacons.values():
            if beacons.setdefault(beacon.number, beacon) != beacon:
                raise Difference(f"beacon {beacon.number}: two lines have it otherwise")
        for party in one.inputs.parties:
            said = party, [d for d in one.inputs.rules.decisions if d.device == party.device]
            if parties.setdefault(party.device, said) != said:
                raise Difference(f"devices.json, decisions.json: two lines have device {party.device.hex()} otherwise")
        if one.entries != audited[0].entries:
            raise Difference("limits.json, backend.json: two lines have them otherwise")


def _read_run(pack: Pack) -> Run:
    run = pack.run
    check_period(RUN, run.period, run.until_s)
    named = [one["line"] for one in run.lines]
    if named != sorted(set(named)):
        raise Difference(f"{RUN}: its lines are not sorted, or one is there twice")
    if run.total_mws != total_of(run.lines):
        raise Difference(f"{RUN}: total_mws is not its lines'")
    return run


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
    inputs = read_line(entries)
    said = run.by_line.get(line)
    manifest = hashlib.sha256(entry(entries, MANIFEST)).digest()
    if said is None or said["manifest"] != manifest.hex():
        raise Difference(f"{MANIFEST}: its SHA-256 is not the one in {RUN}")
    if (inputs.network, inputs.period, inputs.until_s) != (run.document["network"], run.period, run.until_s):
        raise Difference(f"{MANIFEST}: of another network or period than {RUN}")
    terms = inputs.line
    ends = Ends(terms.miner, terms.miner_channel, terms.node, terms.node_channel, terms.epoch)
    if terms.line.hex() != line or ends.line_id != terms.line:
        raise Difference(f"line.json: its id is not that of its ends, or of another line than {line}")
    tokens = {terms.miner, terms.node}
    if any(party.token not in tokens for party in inputs.parties):
        raise Difference("devices.json: a device of neither end")
    if {d.device for d in inputs.rules.decisions} - {party.device for party in inputs.parties}:
        raise Difference("decisions.json: a decision on a device of neither end")
    judge = Judge(pack.segment, run_tasks)
    evidence = judge.evidence(inputs)
    result = _check_derived(inputs, evidence, entries, found)
    if {**result.statement, "manifest": manifest.hex()} != said:
        raise Difference(f"{RUN}: its statement of the line is another one")
    check_base(inputs, evidence, previous, found, run_tasks)
    files = {name: entry(entries, name) for name in ("limits.json", "backend.json")}
    chains = {device: [replace(judged, facts=()) for judged in chain] for device, chain in evidence.chains.items()}
    return Audited(inputs, files, evidence.beacons, chains, result.claim(manifest))


def _check_derived(inputs: Inputs, evidence: Evidence, entries: Mapping[str, bytes], found: Findings) -> LineResult:
    """Derive the line again, and compare it with what its evidence says."""
    name = f"line {inputs.line.line.hex()[:8]}…"
    result = derive(inputs, evidence)
    said = f"{evidence.batches} batches: signatures, chain, registers, shares and attestations judged again"
    found.ok(f"{name}: {len(entries)} entries and {_count(inputs)} segments have their SHA-256; {said}")
    for entry_name, data in sorted(result.entries.items()):
        compare(entry_name, data, entry(entries, entry_name))
    for device, trouble in evidence.troubles.items():
        found.ok(f"{name} is in trouble, and is paid nothing: device {device.hex()}: {trouble}")
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
