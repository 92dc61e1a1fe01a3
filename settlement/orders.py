"""From a closed period to payment: each step looks at the chain first, so it may be repeated at will."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from typing import Final

from eth_account.signers.local import LocalAccount
from sqlalchemy import Engine

from maxgreen.chain.dao import Dao, Proposal, ProposalState
from maxgreen.chain.deployment import Deployment
from maxgreen.chain.explain import NO_FUNDS, ChainRefusedError
from maxgreen.chain.orders import Ends, LossTerms, OrderRequest, OrderStatus, SettlementContract
from maxgreen.clock import Clock
from maxgreen.errors import MaxgreenError
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import reader
from maxgreen.protocol.attestation import Attestation
from maxgreen.protocol.batch import parse_batch
from maxgreen.protocol.pack import ORDER, canonical_json
from maxgreen.protocol.reasons import Verdict
from settlement.close import Closed
from settlement.statement import Leaf

_OURS: Final = {NO_FUNDS, "AccessManagedUnauthorized"}  # the operator's trouble, not a line's
_DEAD: Final = {ProposalState.CANCELED, ProposalState.DEFEATED, ProposalState.EXPIRED}


@dataclass(frozen=True)
class Placed:
    """A line's order on the chain, and how far it got."""

    leaf: Leaf
    order_id: int
    status: OrderStatus


class Payer:
    """Places orders, carries the DAO's vote through, and collects."""

    def __init__(
        self, deployment: Deployment, clock: Clock, operator: LocalAccount, members: Sequence[LocalAccount]
    ) -> None:
        """`members` are the DAO members whose keys this process holds: in trials all, else none."""
        self._deployment = deployment
        self._contract = SettlementContract(deployment)
        self._dao = Dao(deployment, clock)
        self._operator = operator
        self._members = list(members)
        self.refused: dict[str, str] = {}  # by line, what the chain said when its order was placed

    def place(self, closed: Closed) -> list[Placed]:
        """Request an order for every leaf that has none; return where each stands.

        A line that the chain refuses is in `refused`, and the others go on.
        """
        self.refused = {}
        placed = []
        for leaf in closed.derived.leaves:
            try:
                placed.append(self._place(closed, leaf))
            except ChainRefusedError as error:
                if error.name in _OURS:
                    raise
                self.refused[leaf.line.hex()] = str(error)
        return placed

    def proposal(self, closed: Closed, placed: Sequence[Placed]) -> Proposal:
        """Return the vote on a period's orders: the attempt that is under way or passed, else the next one.

        The description ends in the proposer's address, so that nobody else can propose and cancel it (OpenZeppelin).
        """
        return next(p for p in self._attempts(closed, placed) if self._dao.state(p) not in _DEAD)

    def _attempts(self, closed: Closed, placed: Sequence[Placed]) -> Iterator[Proposal]:
        roots = {p.order_id: closed.derived.tree.root for p in placed}
        whose = f" #proposer={self._members[0].address.lower()}" if self._members else ""
        for number in count(1):
            text = f"Pay {closed.period}, manifest {closed.manifest_digest.hex()}, attempt {number}{whose}"
            yield self._contract.approval(roots, text)

    def decide(self, closed: Closed, placed: Sequence[Placed], *, wait: bool) -> ProposalState | None:
        """Carry the vote as far as it goes; None when it is for others to vote, or there is nothing to vote on."""
        if not placed or not self._members:
            return None
        proposal = self.proposal(closed, placed)
        if self._dao.state(proposal) is None and all(p.status is not OrderStatus.REQUESTED for p in placed):
            return None
        return self._dao.carry_out(proposal, self._members, wait=wait)

    def votes(self, closed: Closed, placed: Sequence[Placed]) -> tuple[int, int, int]:
        """Return the votes against, for and abstaining of the newest attempt."""
        votes = (0, 0, 0)
        for proposal in self._attempts(closed, placed) if placed else ():
            if self._dao.state(proposal) is None:
                break
            votes = self._dao.votes(proposal)
        return votes

    def collect(self, placed: Sequence[Placed]) -> None:
        """Pay out what is credited."""
        for order in placed:
            if self._contract.line(order.leaf.line).credit_mws:
                try:
                    self._contract.collect(self._operator, order.leaf.line)
                except ChainRefusedError as error:
                    # it stays credited until the battery has room and both are active; or another was first
                    if error.name not in {"NoRoom", "SystemNotActive", "NothingToCollect"}:
                        raise

    def order_entry(self, closed: Closed, placed: Sequence[Placed]) -> bytes:
        """Return order.json."""
        addresses = asdict(self._deployment.addresses)
        chain_id = addresses.pop("chain_id")
        tree = closed.derived.tree
        leaves = list(closed.derived.leaves)
        return canonical_json(
            {
                "chain_id": chain_id,
                "contracts": addresses,
                "data_root": tree.root.hex(),
                "orders": [
                    {
                        "line": p.leaf.line.hex(),
                        "order": p.order_id,
                        "leaf": [v.hex() if isinstance(v, bytes) else str(v) for v in p.leaf.values],
                        "proof": [sibling.hex() for sibling in tree.proof(leaves.index(p.leaf))],
                        "transactions": self._contract.transactions(p.order_id),
                    }
                    for p in placed
                ],
            }
        )

    def pack_entries(self, closed: Closed, placed: Sequence[Placed]) -> dict[str, bytes]:
        """Return a period's pack, with its order when there is one."""
        return {**closed.entries, **({ORDER: self.order_entry(closed, placed)} if placed else {})}

    def minted_wei(self, placed: Sequence[Placed]) -> int:
        """Return everything that was ever paid out on the lines, wei."""
        return sum(self._contract.line(p.leaf.line).minted_wei for p in placed)

    def _place(self, closed: Closed, leaf: Leaf) -> Placed:
        if (there := self._found(closed, leaf)) is not None:
            return there
        wanted = OrderRequest(
            line=leaf.line,
            until_s=leaf.until_s,
            payable_total_mws=leaf.payable_total_mws,
            batch_root=leaf.batch_root,
            data_root=closed.derived.tree.root,
            manifest_digest=closed.manifest_digest,
            sent=leaf.sent,
            received=leaf.received,
        )
        try:
            return Placed(leaf, self._contract.request(self._operator, wanted), OrderStatus.REQUESTED)
        except ChainRefusedError:
            if (there := self._found(closed, leaf)) is not None:  # another run was first
                return there
            raise

    def _found(self, closed: Closed, leaf: Leaf) -> Placed | None:
        for order_id in reversed(self._contract.orders_of(leaf.line)):
            order = self._contract.order(order_id)
            if order.manifest_digest == closed.manifest_digest:
                return Placed(leaf, order_id, order.status)
        return None


def open_line(engine: Engine, deployment: Deployment, operator: LocalAccount, ends: Ends, loss: LossTerms) -> bytes:
    """Open a line with the first attestation of each end, unless it is open; return its id."""
    contract = SettlementContract(deployment)
    try:
        contract.line(ends.line_id)
    except ChainRefusedError as error:
        if error.name != "NoSuchLine":
            raise
        with reader(engine).begin() as connection:
            book = Book(connection)
            sent = first_attestation(book, ends.miner_token, ends.miner_channel)
            received = first_attestation(book, ends.node_token, ends.node_channel)
        contract.open_line(operator, ends, loss, sent, received)
    return ends.line_id


def first_attestation(book: Book, token: int, channel: int) -> Attestation:
    """Return a channel's first attestation in an accepted batch."""
    device = next((d.record.device for d in book.all_devices() if d.token == token), None)
    if device is None:
        raise MaxgreenError(f"system {token}: not registered, or the registry was not read yet")
    for row in book.chain_of(device):
        if row.verdict == Verdict.ACCEPTED.value:
            for attestation in parse_batch(bytes(row.message)).batch.attestations:
                if attestation.channel == channel:
                    return attestation
    raise MaxgreenError(f"system {token}: channel {channel} has attested no register yet; has its agent run?")
