"""The audit against the chain: what devices and lines are, the rules, the order, the payment."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from maxgreen.chain.code import code_findings
from maxgreen.chain.deployment import Addresses, Deployment
from maxgreen.chain.explain import ChainRefusedError
from maxgreen.chain.orders import Claim, Line, OrderStatus, Reading, SettlementContract
from maxgreen.chain.registry import RegisteredSystem, module_history, systems_of
from maxgreen.errors import MaxgreenError
from maxgreen.protocol.backend import Beacon
from maxgreen.protocol.pack import ORDER, RUN
from settlement.audit_order import PackedOrder
from settlement.checks import CHECKS_VERSION
from settlement.findings import Difference, Findings
from settlement.inputs import Inputs, LineTerms, Party, party_of_system
from settlement.run import Run

# the modules that a DAO registers what settlements follow by: name, and what its digest is of
LIMITS_MODULE, KEYS_MODULE, CHECKS_MODULE = "limits", "backend keys", "checks"


@dataclass(frozen=True)
class Pinned:
    """Which contracts are meant, as the auditor says."""

    network: str | None = None
    settlement: str | None = None
    addresses: Addresses | None = None

    def check_network(self, network: str) -> None:
        """Difference unless a pack is of the network that is meant."""
        wanted = self.addresses.network if self.addresses is not None else self.network
        if wanted is not None and wanted.lower() != network:
            raise Difference(f"the pack is of network {network}, not of {wanted}")

    def check_contracts(self, addresses: Addresses) -> None:
        """Difference unless an order's contracts are those that are meant."""
        if self.addresses is not None and self.addresses != addresses:
            raise Difference(f"{ORDER}: its contracts are not those of the deployment file")
        if self.settlement is not None and self.settlement.lower() != addresses.settlement.lower():
            raise Difference(f"{ORDER}: its settlement is {addresses.settlement}, not {self.settlement}")


class Audited(Protocol):
    """A line whose evidence holds."""

    @property
    def inputs(self) -> Inputs:
        """What its statement follows from."""

    @property
    def entries(self) -> Mapping[str, bytes]:
        """Its entries that modules of the DAO speak of."""

    @property
    def beacons(self) -> Mapping[int, Beacon]:
        """The beacons that its batches name."""


def check_chain(
    order: PackedOrder, run: Run, lines: Sequence[Audited], deployment: Deployment, found: Findings, *, complete: bool
) -> None:
    """Compare a run's lines and its order with the chain; Difference says what is not the same.

    `complete`: the evidence of all lines of the run is here.
    """
    try:
        _check_chain(order, run, lines, deployment, found, complete=complete)
    except ChainRefusedError as error:
        raise Difference(f"{ORDER}: the chain does not know what it names: {error}") from error


def _check_chain(
    order: PackedOrder, run: Run, lines: Sequence[Audited], deployment: Deployment, found: Findings, *, complete: bool
) -> None:
    for finding in code_findings(deployment.chain, deployment.addresses):
        raise Difference(f"{ORDER}: {finding}")
    network = run.document["network"]
    if deployment.network != network:
        raise Difference(f"{ORDER}: contracts are of network {deployment.network}, the pack of {network}")
    found.ok("contracts: their code is this version's")
    contract = SettlementContract(deployment)
    inputs = [line.inputs for line in lines]
    systems = systems_of(deployment, sorted({party.token for one in inputs for party in one.parties}))
    for one in inputs:
        for party in one.parties:
            _check_party(party, systems.get(party.device), list(systems.values()), run.until_s * 1000)
        _check_keys(one, systems.values())
    devices = {party.device for one in inputs for party in one.parties}
    found.ok(f"registry: key, channels, terms and statuses of {len(devices)} devices are its own")
    stored = contract.order(order.number)
    book = {one.line.line: contract.line(one.line.line) for one in inputs}
    if complete:
        _check_all_lines(contract, run, stored.posted_block, found)
    _check_lines(contract, inputs, book, stored.posted_block, found)
    for entries in _different(lines):
        _check_modules(deployment, entries, found)
    _check_beacons(deployment, {number: b for line in lines for number, b in line.beacons.items()}, found)
    if stored.content != order.posting.content(order.number):
        raise Difference(f"order {order.number} on the chain is not the pack's")
    real = contract.transactions(order.number)
    for name, digest in order.transactions.items():
        if real.get(name) != digest:
            raise Difference(f"{ORDER}: transaction {name} is {real.get(name)} on the chain, not {digest[:70]}")
    if stored.status is not OrderStatus.APPROVED:
        found.ok(f"order {order.number} is on the chain, {stored.status.label}")
        return
    found.ok(f"order {order.number} on the chain is the pack's, and approved")
    for claim in order.claims:
        terms = next(one for one in inputs if one.line.line == claim.line)
        found.ok(_check_payment(book[claim.line], terms, claim))


def _different(lines: Sequence[Audited]) -> list[Mapping[str, bytes]]:
    """Return the files that modules speak of, each version of them once."""
    return list({tuple(sorted(line.entries.items())): line.entries for line in lines}.values())


def _check_party(party: Party, system: RegisteredSystem | None, systems: list[RegisteredSystem], until_ms: int) -> None:
    name = f"devices.json: device {party.device.hex()}"
    if system is None:
        raise Difference(f"{name} is not the registry's token {party.token}")
    own = party_of_system(system)
    statuses, real = party.record.statuses, own.record.statuses
    later = real[len(statuses) :]
    if statuses != real[: len(statuses)] or any(at_ms < until_ms for at_ms, _ in later):
        raise Difference(f"{name}: its statuses are not the registry's")
    record = replace(own.record, statuses=statuses)
    if party.record.until_ms is None and record.until_ms is not None and record.until_ms >= until_ms:
        record = replace(record, until_ms=None)  # it was rotated or replaced since
    if record.lost and not party.record.lost:
        following = [s for s in systems if s.token == party.token and s.key_number > party.key_number]
        replaced_ms = min((s.since_ms for s in following if not s.record.lost), default=until_ms)
        record = replace(record, lost=replaced_ms < until_ms)
    for field in Party.__dataclass_fields__:
        want = record if field == "record" else getattr(own, field)
        if getattr(party, field) != want:
            raise Difference(f"{name}: {field} is not the registry's")


def _check_keys(inputs: Inputs, systems: Iterable[RegisteredSystem]) -> None:
    """Check that no key of a line's systems is left out."""
    tokens, devices = {party.token for party in inputs.parties}, {party.device for party in inputs.parties}
    until_ms = inputs.until_s * 1000
    missing = [
        system.record.device.hex()
        for system in systems
        if system.token in tokens and system.record.device not in devices and system.since_ms < until_ms
    ]
    if missing:
        raise Difference(f"devices.json: {', '.join(missing)}, a key of one of its systems, is left out")


def _check_all_lines(contract: SettlementContract, run: Run, posted_block: int, found: Findings) -> None:
    """Check that no line of the book is left out of a run."""
    posted_s, known = contract.time_of(posted_block), {one["line"] for one in run.lines}
    for line in contract.opened_lines():
        name = line.ends.line_id.hex()
        if name in known or line.base_sent.time_s >= run.until_s:
            continue
        if line.opened_s < run.until_s:
            raise Difference(f"{RUN}: line {name} is left out")
        if line.opened_s <= posted_s:
            found.believe(f"that line {name[:8]}… was opened after the close, before the posting")


def _check_lines(
    contract: SettlementContract,
    inputs: Sequence[Inputs],
    lines: Mapping[bytes, Line],
    posted_block: int,
    found: Findings,
) -> None:
    """Compare lines with the book."""
    keeps = True  # the chain keeps what it was when the order was posted
    for one in inputs:
        terms = one.line
        _check_line(terms, lines[terms.line], one.until_s)
        there = _paid_at(contract, terms.line, posted_block) if keeps else None
        keeps = there is not None
        if there != terms.paid_mws:
            said = f"{there} mW·s were when the order was posted" if keeps else "the chain keeps no state of then"
            found.believe(f"line {terms.line.hex()[:8]}…: {terms.paid_mws} mW·s were paid when it was closed; {said}")
    found.ok(f"lines: ends, loss terms and bases of {len(inputs)} are the book's")


def _check_line(terms: LineTerms, line: Line, until_s: int) -> None:
    wanted = {
        "miner": (terms.miner, line.ends.miner_token),
        "miner_channel": (terms.miner_channel, line.ends.miner_channel),
        "node": (terms.node, line.ends.node_token),
        "node_channel": (terms.node_channel, line.ends.node_channel),
        "resistance_uohm": (terms.resistance_uohm, line.loss.resistance_uohm),
        "loss_ppm": (terms.loss_ppm, line.loss.loss_ppm),
        "max_loss_ppm": (terms.max_loss_ppm, line.loss.max_loss_ppm),
        "opened": (
            (tuple(terms.sent_base), tuple(terms.received_base)),
            (_values(line.base_sent), _values(line.base_received)),
        ),
        # it was read when the period was closed: the book may have gone on since
        "paid_mws": (terms.paid_mws, min(terms.paid_mws, line.paid_mws)),
        "paid_until": (terms.paid_until_s, min(terms.paid_until_s, line.until_s)),
        "known": (
            (terms.known_sent.key_number, terms.known_received.key_number),
            (
                min(terms.known_sent.key_number, line.sent.key_number),
                min(terms.known_received.key_number, line.received.key_number),
            ),
        ),
    }
    if terms.closed_s or (line.closed_s and line.closed_s < until_s):
        wanted["closed"] = (terms.closed_s, line.closed_s)
    for field, (have, want) in wanted.items():
        if have != want:
            raise Difference(f"line.json: {field} of line {terms.line.hex()} is {have}, the book has {want}")


def _values(reading: Reading) -> tuple[int, int, int, int]:
    return reading.time_s, reading.seq, reading.register_mws, reading.key_number


def _paid_at(contract: SettlementContract, line: bytes, block: int) -> int | None:
    """Return what a line was paid at a block; None where the chain does not keep its state of then."""
    try:
        return contract.line(line, at=block).paid_mws
    except MaxgreenError:
        return None


def module_files(entries: Mapping[str, bytes]) -> dict[str, tuple[str, bytes]]:
    """Return what a pack follows by that the DAO can register: by the module's name, a file's name and its bytes."""
    return {
        LIMITS_MODULE: ("limits.json", entries["limits.json"]),
        KEYS_MODULE: ("backend.json", entries["backend.json"]),
        CHECKS_MODULE: ("checks.txt", CHECKS_VERSION.encode()),
    }


def _check_modules(deployment: Deployment, entries: Mapping[str, bytes], found: Findings) -> None:
    """Compare limits, the backend's keys and the version of checks with what the DAO registered."""
    for module, (what, data) in module_files(entries).items():
        digest = hashlib.sha256(data).digest()
        history = module_history(deployment, module)
        if not history:
            found.believe(f"{what}, SHA-256 {digest.hex()[:16]}…: the DAO registered no module {module!r}")
        elif digest not in history:
            raise Difference(f"{what}: SHA-256 {digest.hex()} is no version of the DAO's module {module!r}")
        else:
            found.ok(f"{what} is a version of the DAO's module {module!r}")


def _check_beacons(deployment: Deployment, beacons: Mapping[int, Beacon], found: Findings) -> None:
    count = 0
    for beacon in beacons.values():
        try:
            block = deployment.chain.block(beacon.block_number)
        except MaxgreenError as error:
            raise Difference(f"beacon {beacon.number}: {error}") from error
        if block.hash != beacon.block_hash:
            raise Difference(f"beacon {beacon.number} is not of block {beacon.block_number}")
        count += 1
    found.ok(f"beacons: {count} have the hash of their block")


def _check_payment(line: Line, inputs: Inputs, claim: Claim) -> str:
    terms = inputs.line
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
