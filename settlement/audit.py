"""The audit: everything again from the pack, and against the chain; the first difference has a name.

It trusts the backend for arrival times and recorded decisions, and for nothing else.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from maxgreen.chain.claims import parse_claims
from maxgreen.chain.client import Chain
from maxgreen.chain.code import code_findings
from maxgreen.chain.deployment import Addresses, Deployment
from maxgreen.chain.merkle import LINE_LEAF, leaf_hash, root_of
from maxgreen.chain.orders import Claim, OrderStatus, Posting, SettlementContract
from maxgreen.chain.registry import read_systems
from maxgreen.errors import UsageError
from maxgreen.protocol.backend import BackendKeys
from maxgreen.protocol.pack import MANIFEST, ORDER, PackError
from maxgreen.protocol.reasons import Rejected
from settlement.inputs import Inputs, LineBase, entry
from settlement.statement import Derived, derive, fold

TRUSTED = "trusted from the backend: arrival times and recorded decisions"


class Difference(PackError):  # noqa: N818 - what an audit finds, not a fault of the program
    """What the pack or the chain says is not what follows from the evidence."""


@dataclass(frozen=True)
class Report:
    """What an audit found right."""

    period: str
    checks: tuple[str, ...]
    statement: bytes

    def text(self) -> str:
        """Return the report for people."""
        lines = [f"period {self.period}", *(f"  ok  {check}" for check in self.checks), f"  {TRUSTED}"]
        return "\n".join(lines)


def audit(
    entries: Mapping[str, bytes], *, previous: Mapping[str, bytes] | None = None, chain: Chain | None = None
) -> Report:
    """Verify a pack; Difference or PackError names the first thing that does not hold."""
    checks = tuple(_checks(entries, previous, chain))
    return Report(json.loads(entries[MANIFEST])["period"], checks, entries["statement.json"])


def _checks(entries: Mapping[str, bytes], previous: Mapping[str, bytes] | None, chain: Chain | None) -> Iterator[str]:
    _check_manifest(entries)
    yield f"manifest: {len(entries)} entries have their SHA-256"
    try:
        inputs = Inputs.from_entries(entries)
        derived = derive(inputs)
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        raise PackError(f"the pack's inputs do not fit together: {type(error).__name__}: {error}") from error
    count = sum(map(len, inputs.batches.values()))
    yield f"evidence: {count} batches: signatures, chain, registers, shares and attestations judged again"
    for name, data in sorted(derived.entries.items()):
        _compare(name, data, entry(entries, name))
    yield "windows and statement follow from the evidence, byte for byte"
    try:
        keys = BackendKeys(inputs.backend_keys, inputs.network)
        keys.open(entry(entries, "statement.cose"), "statement", detached_payload=entries["statement.json"])
    except (Rejected, ValueError) as error:
        raise Difference(f"statement.cose: {error}") from error
    yield "statement is signed by the backend"
    yield _check_base(inputs, previous)
    if ORDER in entries:
        number, addresses, posting, claims = _order(entries[ORDER])
        _check_order(posting, claims, derived, hashlib.sha256(entries[MANIFEST]).digest())
        yield f"order: {len(claims)} leaves lead to its root, and its total is the statement's"
        if chain is None:
            yield "growth verified, payment not verified (no --rpc)"
        else:
            yield from _check_chain(number, posting, inputs, claims, Deployment(chain, addresses))
    elif derived.leaves:
        yield "no order yet: nothing was paid for this statement"


def _check_manifest(entries: Mapping[str, bytes]) -> None:
    try:
        files = dict(json.loads(entry(entries, MANIFEST))["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise PackError(f"{MANIFEST}: not a manifest: {error}") from error
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


def _check_base(inputs: Inputs, previous: Mapping[str, bytes] | None) -> str:
    """Check the sums that come from earlier packs (P-PCK-1)."""
    if all(line.base == LineBase(line.base.until_s) for line in inputs.lines):
        return "base: this pack begins where its lines opened"
    if previous is None:
        return "growth verified, base not verified (name the previous pack with --previous)"
    if inputs.previous != hashlib.sha256(entry(previous, MANIFEST)).digest():
        raise Difference(f"{MANIFEST}: 'previous' is not the SHA-256 of the previous pack's manifest")
    before = derive(Inputs.from_entries(previous))
    bases = {r.terms.line: fold(r.terms.base, r.windows.windows, inputs.start_s) for r in before.lines}
    for line in inputs.lines:
        if line.base != bases.get(line.line, LineBase(inputs.start_s)):
            raise Difference(f"lines.json: the base of line {line.line.hex()} is not the previous pack's sums")
    return "base follows from the previous pack"


def _order(data: bytes) -> tuple[int, Addresses, Posting, list[Claim]]:
    try:
        order = json.loads(data)
        value = order["posting"]
        posting = Posting(
            value["until"],
            bytes.fromhex(value["root"]),
            value["count"],
            int(value["total_mws"]),
            bytes.fromhex(value["manifest"]),
            value["evidence"],
        )
        addresses = Addresses(chain_id=int(order["chain_id"]), **order["contracts"])
        return int(order["order"]), addresses, posting, parse_claims(data)
    except (ValueError, KeyError, TypeError, UsageError) as error:
        raise PackError(f"{ORDER}: {error}") from error


def _check_order(posting: Posting, claims: Sequence[Claim], derived: Derived, manifest_digest: bytes) -> None:
    """Compare what was asked for with what follows from the evidence."""
    tree = derived.tree
    if posting.root != tree.root:
        raise Difference(f"{ORDER}: its root is not that of the statement's leaves")
    if posting.manifest_digest != manifest_digest:
        raise Difference(f"{ORDER}: it names another manifest")
    if posting.total_mws != derived.total_mws:
        raise Difference(f"{ORDER}: its total is {posting.total_mws}, the statement's {derived.total_mws} mW·s")
    leaves = {leaf.line: leaf for leaf in derived.leaves}
    if posting.count != len(leaves) or {claim.line for claim in claims} != set(leaves):
        raise Difference(f"{ORDER}: its lines are not those with something payable")
    for claim in claims:
        values = claim.leaf(posting.until_s)
        if replace(claim, proof=()) != leaves[claim.line].claim or values != leaves[claim.line].values:
            raise Difference(f"{ORDER}: the claim of line {claim.line.hex()} is not the statement's leaf")
        if root_of(leaf_hash(LINE_LEAF, values), list(claim.proof)) != tree.root:
            raise Difference(f"{ORDER}: the proof of line {claim.line.hex()} does not lead to the root")


def _check_chain(
    number: int, posting: Posting, inputs: Inputs, claims: Sequence[Claim], deployment: Deployment
) -> Iterator[str]:
    """Compare with the chain: devices' keys, lines' bases, the order, payment."""
    for finding in code_findings(deployment.chain, deployment.addresses):
        raise Difference(f"{ORDER}: {finding}")
    if deployment.network != inputs.network:
        raise Difference(f"{ORDER}: contracts are of network {deployment.network}, the pack of {inputs.network}")
    contract = SettlementContract(deployment)
    systems = read_systems(deployment)
    for party in inputs.parties:
        system = systems.get(party.device)
        if system is None or system.token != party.token or system.record.spki != party.record.spki:
            raise Difference(f"devices.json: device {party.device.hex()} is not the registry's token {party.token}")
    yield f"registry has the keys of {len(inputs.parties)} devices"
    for terms in inputs.lines:
        line = contract.line(terms.line)
        have = (line.base_sent.register_mws, line.base_received.register_mws, line.loss.resistance_uohm)
        if have != (terms.sent_register, terms.received_register, terms.resistance_uohm):
            raise Difference(f"lines.json: line {terms.line.hex()} has other bases or terms on the chain")
    stored = contract.order(number)
    if stored.content != posting.content(number):
        raise Difference(f"order {number} on the chain is not the pack's")
    if stored.status is not OrderStatus.APPROVED:
        yield f"order {number} is on the chain, {stored.status.label}"
        return
    yield f"order {number} on the chain is the pack's, and approved"
    for claim in claims:
        yield _check_payment(contract, inputs, claim)


def _check_payment(contract: SettlementContract, inputs: Inputs, claim: Claim) -> str:
    terms = next(terms for terms in inputs.lines if terms.line == claim.line)
    line = contract.line(claim.line)
    name = f"line {claim.line.hex()[:8]}…"
    if line.paid_mws < claim.payable_total_mws:
        why = f", held by the DAO with code {line.hold}" if line.hold else ""
        return f"{name}: not claimed yet{why}"
    energy = line.minted_mws
    efficiency_ppm = inputs.party(terms.node).efficiency_ppm
    if line.minted_wei != energy * efficiency_ppm * 2_500 // 9:
        raise Difference(
            f"line {claim.line.hex()}: {line.minted_wei} wei were minted for {energy} mW·s at {efficiency_ppm} ppm"
        )
    return f"{name}: {line.minted_wei} wei minted for {energy} mW·s in all"
