"""The audit: everything again from the pack, and against the chain; the first difference has a name.

What it cannot check it says, in one list: what is still believed.
"""

import hashlib
from collections.abc import Mapping
from typing import Final

from maxgreen.chain.client import Chain
from maxgreen.chain.deployment import Deployment
from maxgreen.errors import UsageError
from maxgreen.protocol.backend import BackendKeys
from maxgreen.protocol.batch import parse_batch
from maxgreen.protocol.pack import MANIFEST, ORDER, PackError
from maxgreen.protocol.reasons import Rejected
from maxgreen.verify.chain import ChainState
from maxgreen.verify.rules import Action
from settlement.audit_chain import Pinned, check_chain
from settlement.audit_order import check_order, read_order
from settlement.findings import Difference, Findings, Report
from settlement.inputs import STATES_AFTER, Inputs, entry, read_states
from settlement.periods import period_bounds
from settlement.replay import state_at
from settlement.shapes import MANIFEST_SHAPE, read_shape
from settlement.statement import Derived, derive, fold
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


def audit(
    entries: Mapping[str, bytes],
    *,
    previous: Mapping[str, bytes] | None = None,
    chain: Chain | None = None,
    pinned: Pinned | None = None,
) -> Report:
    """Verify a pack; Difference or PackError names the first thing that does not hold.

    `pinned` says which contracts are meant, by something that does not come from the pack.
    """
    try:
        return _audit(entries, previous, chain, pinned)
    except (*_UNREADABLE, Rejected) as error:
        raise PackError(f"the pack's entries do not fit together: {type(error).__name__}: {error}") from error


def _audit(
    entries: Mapping[str, bytes],
    previous: Mapping[str, bytes] | None,
    chain: Chain | None,
    pinned: Pinned | None,
) -> Report:
    found = Findings()
    inputs = _read(entries, found)
    if pinned is not None:
        pinned.check_network(inputs.network)
    derived = _derive(inputs, entries, found)
    _check_base(inputs, previous, found)
    order = read_order(entries[ORDER]) if ORDER in entries else None
    if order is not None:
        check_order(order, derived, hashlib.sha256(entries[MANIFEST]).digest())
        found.ok(f"order: {len(order.claims)} leaves lead to its root, and its total is the statement's")
    elif derived.leaves:
        found.ok("no order yet: nothing was paid for this statement")
    if chain is not None and order is not None:
        if pinned is not None:
            pinned.check_contracts(order.addresses)
        else:
            found.believe("that these contracts are the deployment's: name it with --deployment")
        check_chain(order, inputs, entries, Deployment(chain, order.addresses), found)
    else:
        what = "no order" if order is None else "no --rpc"
        found.believe(f"devices, lines, limits, keys and payment: not compared with the chain ({what})")
    return Report(
        period=inputs.period,
        network=inputs.network,
        contracts={} if order is None else order.contracts,
        order=None if order is None else order.number,
        payable_mws={r.terms.line.hex(): int(r.statement["payable_mws"]) for r in derived.lines},
        checks=tuple(found.checks),
        believed=tuple(found.believed),
        statement=entries["statement.json"],
    )


def _read(entries: Mapping[str, bytes], found: Findings) -> Inputs:
    """Read a pack's inputs, whose bytes are those of the manifest, in the format's one form."""
    _check_manifest(entries)
    found.ok(f"manifest: {len(entries)} entries have their SHA-256")
    inputs = Inputs.from_entries(entries)
    for name, data in sorted(inputs.entries().items()):
        _compare(name, data, entry(entries, name))
    return inputs


def _derive(inputs: Inputs, entries: Mapping[str, bytes], found: Findings) -> Derived:
    """Derive everything again, and compare it with what the pack and its receipts say."""
    derived = derive(inputs)
    count = sum(map(len, inputs.batches.values()))
    found.ok(f"evidence: {count} batches: signatures, chain, registers, shares and attestations judged again")
    for name, data in sorted(derived.entries.items()):
        _compare(name, data, entry(entries, name))
    found.ok("windows and statement follow from the evidence, byte for byte")
    for result in derived.lines:
        if trouble := result.statement["trouble"]:
            found.ok(f"line {result.terms.line.hex()[:8]}… is in trouble, and is paid nothing: {trouble}")
    try:
        keys = BackendKeys(inputs.backend_keys, inputs.network)
        keys.open(entry(entries, "statement.cose"), "statement", detached_payload=entries["statement.json"])
    except (Rejected, ValueError) as error:
        raise Difference(f"statement.cose: {error}") from error
    found.ok("statement is signed by the backend")
    found.ok(_check_receipts(inputs, found))
    if inputs.rules.decisions:
        found.believe(f"{len(inputs.rules.decisions)} recorded decisions (decisions.json has who, when and why)")
    return derived


def _check_manifest(entries: Mapping[str, bytes]) -> None:
    manifest = read_shape(entries, MANIFEST, MANIFEST_SHAPE)
    files, period, until_s = manifest["files"], manifest["period"], manifest["until"]
    try:
        end_s = period_bounds(period)[1]
    except UsageError as error:
        raise PackError(f"{MANIFEST}: {error}") from error
    if until_s != end_s:
        raise Difference(f"{MANIFEST}: {period} does not end at {str(until_s)[:40]}")
    for name in sorted((set(entries) | set(files)) - {MANIFEST, ORDER}):
        data = entry(entries, name)
        if name not in files:
            raise Difference(f"{name}: not in the manifest")
        if hashlib.sha256(data).hexdigest() != files[name]:
            raise Difference(f"{name}: its SHA-256 is not the manifest's")


def _compare(name: str, expected: bytes, found: bytes) -> None:
    if expected == found:
        return
    rows = zip(expected.splitlines(), found.splitlines(), strict=False)
    number, (want, have) = next(
        ((k, pair) for k, pair in enumerate(rows, 1) if pair[0] != pair[1]), (0, (b"another length", b""))
    )
    raise Difference(f"{name}: line {number}: the evidence gives {want[:120]!r}, the pack says {have[:120]!r}")


def _check_receipts(inputs: Inputs, found: Findings) -> str:
    """Check that nothing is missing that the backend had receipted (P-RCT-4)."""
    count = 0
    keys = BackendKeys(inputs.backend_keys, inputs.network)
    without = [device.hex() for device, messages in inputs.batches.items() if messages and not inputs.receipts[device]]
    if without:
        found.believe(f"that all batches of {', '.join(sorted(without))} are here: the pack has no receipt of them")
    for device, messages in inputs.receipts.items():
        digests = {parse_batch(m).batch.seq: hashlib.sha256(m).digest() for m in inputs.batches[device]}
        start = inputs.starts[device]
        name = f"receipts/{device.hex()}.cborseq"
        for message in messages:
            receipt = keys.open_receipt(message)
            count += 1
            if receipt.device != device:
                raise Difference(f"{name}: a receipt of device {receipt.device.hex()}")
            last = receipt.next_seq - 1
            head = start.head if receipt.next_seq == start.next_seq else digests.get(last)
            due = receipt.next_seq > start.next_seq and receipt.server_ms <= inputs.until_s * 1000
            if head is None and due and not _skipped(inputs, device, last):
                raise Difference(f"{name}: batch {last} was receipted and is missing")
            if head is not None and head != receipt.head:
                raise Difference(f"{name}: batch {last} is another one than the receipt's")
    return f"receipts: nothing is missing that {count} of them name"


def _skipped(inputs: Inputs, device: bytes, seq: int) -> bool:
    return inputs.rules.decided(device, seq, Action.SKIP)


def _check_base(inputs: Inputs, previous: Mapping[str, bytes] | None, found: Findings) -> None:
    """Check what comes from earlier packs: sums, the chains' states, and how windows stood (P-PCK-1)."""
    starts = {device: state for device, state in inputs.starts.items() if state.next_seq}
    for device in inputs.starts.keys() - starts.keys():
        if inputs.starts[device] != ChainState.start(inputs.network):
            raise Difference(f"start/{device.hex()}.json: it is not the state before a key's first batch")
    stood = any(state != ("", "") for states in inputs.windows_before.values() for state in states.values())
    fresh = all(line.base.sums == Sums() for line in inputs.lines) and not stood
    if fresh and not starts:
        found.ok("base: this pack begins where its lines opened")
        return
    if previous is None:
        found.believe("sums, chain states and disputes of before this pack (name the one before with --previous)")
        return
    if inputs.previous != hashlib.sha256(entry(previous, MANIFEST)).digest():
        raise Difference(f"{MANIFEST}: 'previous' is not the SHA-256 of the previous pack's manifest")
    _check_manifest(previous)
    inputs_before = Inputs.from_entries(previous)
    before = derive(inputs_before)
    for name, data in before.entries.items():
        _compare(f"the previous pack's {name}", data, entry(previous, name))
    bases = {r.terms.line: fold(r.terms.base, r.windows.windows, inputs.start_s) for r in before.lines}
    states = read_states(before.entries, STATES_AFTER)
    for result in before.lines:
        left = [w for w in result.windows.windows if not w.counts and w.measured.has_energy]
        if any(w.window_s < inputs.start_s for w in left):
            raise Difference(f"period.json: windows of line {result.terms.line.hex()} that did not count are left out")
    for line in inputs.lines:
        name = line.line.hex()
        # or it adds up again all that there is since the line opened
        whole = line.base.sums == Sums() and inputs.start_s <= line.sent_base.time_s
        if line.base != bases.get(line.line) and not whole:
            raise Difference(f"lines.json: the base of line {name} is not the previous pack's sums")
        if inputs.windows_before.get(line.line, {}) != _known(inputs, states.get(line.line, {}), line.line):
            raise Difference(f"windows/{name}.csv: the states before are not the previous pack's")
    believed = [device for device, state in starts.items() if not _leads_to(inputs_before, device, state)]
    for device in believed:
        found.believe(f"the state of chain {device.hex()} before its first batch here (no earlier pack reaches it)")
    found.ok("base, chain states and disputes follow from the previous pack")


def _known(inputs: Inputs, states: Mapping[int, tuple[str, str]], line: bytes) -> dict[int, tuple[str, str]]:
    """Return the states of the windows that a pack lists."""
    listed = inputs.windows_before.get(line, {})
    return {w: states.get(w, ("", "")) for w in listed}


def _leads_to(before: Inputs, device: bytes, state: ChainState) -> bool:
    """Tell whether the previous pack reaches a chain state; Difference when it leads to another one."""
    party = next((party for party in before.parties if party.device == device), None)
    found = None if party is None else state_at(before, party, state.next_seq)
    if found is None:
        return False
    if found != state:
        raise Difference(f"start/{device.hex()}.json: the previous pack leads to another state at seq {state.next_seq}")
    return True
