"""An order as a pack has it: read, and compared with what follows from the evidence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from maxgreen.chain.claims import parse_claims
from maxgreen.chain.deployment import Addresses
from maxgreen.chain.merkle import LINE_LEAF, leaf_hash, root_of
from maxgreen.chain.orders import Claim, Posting
from maxgreen.errors import UsageError
from maxgreen.protocol.pack import ORDER, RUN, PackError
from settlement.findings import Difference
from settlement.run import Run
from settlement.shapes import ORDER_SHAPE, read_shape


@dataclass(frozen=True)
class PackedOrder:
    """order.json: which order of which contracts, what it asks for, and who may claim what."""

    number: int
    addresses: Addresses
    contracts: Mapping[str, str]
    posting: Posting
    claims: Sequence[Claim]
    transactions: Mapping[str, str]

    def of(self, claims: Sequence[Claim]) -> "PackedOrder":
        """Return the order with some of its claims alone."""
        return replace(self, claims=claims)


def read_order(data: bytes) -> PackedOrder:
    """Read an order.json; PackError when it is none."""
    order = read_shape({ORDER: data}, ORDER, ORDER_SHAPE)
    value = order["posting"]
    posting = Posting(
        value["until"],
        bytes.fromhex(value["root"]),
        value["count"],
        int(value["total_mws"]),
        bytes.fromhex(value["manifest"]),
        value["evidence"],
    )
    try:
        addresses = Addresses(chain_id=order["chain_id"], **order["contracts"])
        claims = parse_claims(data)
    except (TypeError, UsageError) as error:
        raise PackError(f"{ORDER}: {error}") from error
    return PackedOrder(order["order"], addresses, order["contracts"], posting, claims, order["transactions"])


def check_order(order: PackedOrder, run: Run, claims: Mapping[bytes, Claim]) -> None:
    """Compare what was asked for with the run, and with what follows from the evidence of the lines that are here.

    `claims` have no proofs. Difference says what is not the same.
    """
    posting = order.posting
    if posting.manifest_digest != run.digest:
        raise Difference(f"{ORDER}: it names another {RUN}")
    if posting.until_s != run.until_s:
        raise Difference(f"{ORDER}: it is of another period")
    if run.document["root"] != posting.root.hex() or run.document["count"] != posting.count:
        raise Difference(f"{ORDER}: root and count are not those of {RUN}")
    if posting.total_mws != run.total_mws:
        raise Difference(f"{ORDER}: its total is {posting.total_mws}, the statements' {run.total_mws} mW·s")
    if sorted(claim.line for claim in order.claims) != sorted(claims):
        raise Difference(f"{ORDER}: its lines are not those with something payable")
    for claim in order.claims:
        if replace(claim, proof=()) != claims[claim.line]:
            raise Difference(f"{ORDER}: the claim of line {claim.line.hex()} is not what its evidence gives")
        if root_of(leaf_hash(LINE_LEAF, claim.leaf(posting.until_s)), list(claim.proof)) != posting.root:
            raise Difference(f"{ORDER}: the proof of line {claim.line.hex()} does not lead to the root")
