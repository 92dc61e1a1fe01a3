"""An order as a pack has it: read, and compared with what follows from the evidence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from maxgreen.chain.claims import parse_claims
from maxgreen.chain.deployment import Addresses
from maxgreen.chain.merkle import LINE_LEAF, leaf_hash, root_of
from maxgreen.chain.orders import Claim, Posting
from maxgreen.errors import UsageError
from maxgreen.protocol.pack import ORDER, PackError, read_canonical
from settlement.findings import Difference
from settlement.statement import Derived


@dataclass(frozen=True)
class PackedOrder:
    """order.json: which order of which contracts, what it asks for, and who may claim what."""

    number: int
    addresses: Addresses
    contracts: Mapping[str, str]
    posting: Posting
    claims: Sequence[Claim]
    transactions: Mapping[str, str]


def read_order(data: bytes) -> PackedOrder:
    """Read an order.json; PackError when it is none."""
    order = read_canonical(ORDER, data)
    try:
        value = order["posting"]
        posting = Posting(
            _whole(value["until"]),
            bytes.fromhex(value["root"]),
            _whole(value["count"]),
            int(value["total_mws"]),
            bytes.fromhex(value["manifest"]),
            str(value["evidence"]),
        )
        contracts = {str(name): str(address) for name, address in order["contracts"].items()}
        return PackedOrder(
            number=_whole(order["order"]),
            addresses=Addresses(chain_id=_whole(order["chain_id"]), **contracts),
            contracts=contracts,
            posting=posting,
            claims=parse_claims(data),
            transactions={str(name): str(digest) for name, digest in order["transactions"].items()},
        )
    except (AttributeError, LookupError, TypeError, ValueError, UsageError) as error:
        raise PackError(f"{ORDER}: {type(error).__name__}: {error}") from error


def check_order(order: PackedOrder, derived: Derived, manifest_digest: bytes) -> None:
    """Compare what was asked for with what follows from the evidence; Difference says what is not the same."""
    tree, posting = derived.tree, order.posting
    if posting.root != tree.root:
        raise Difference(f"{ORDER}: its root is not that of the statement's leaves")
    if posting.manifest_digest != manifest_digest:
        raise Difference(f"{ORDER}: it names another manifest")
    if posting.total_mws != derived.total_mws:
        raise Difference(f"{ORDER}: its total is {posting.total_mws}, the statement's {derived.total_mws} mW·s")
    leaves = {leaf.line: leaf for leaf in derived.leaves}
    if posting.count != len(leaves) or sorted(claim.line for claim in order.claims) != sorted(leaves):
        raise Difference(f"{ORDER}: its lines are not those with something payable")
    for claim in order.claims:
        values = claim.leaf(posting.until_s)
        if replace(claim, proof=()) != leaves[claim.line].claim or values != leaves[claim.line].values:
            raise Difference(f"{ORDER}: the claim of line {claim.line.hex()} is not the statement's leaf")
        if root_of(leaf_hash(LINE_LEAF, values), list(claim.proof)) != tree.root:
            raise Difference(f"{ORDER}: the proof of line {claim.line.hex()} does not lead to the root")


def _whole(value: object) -> int:
    if type(value) is not int:
        raise TypeError(f"{str(value)[:40]!r} is no whole number")
    return value
