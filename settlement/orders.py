"""From a closed period to payment: each step looks at the chain first, so it may be repeated at will."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from typing import Final

from eth_account.signers.local import LocalAccount
from sqlalchemy import Engine

from maxgreen.chain.claims import claim_json
from maxgreen.chain.dao import Dao, Proposal, ProposalState
from maxgreen.chain.deployment import Deployment
from maxgreen.chain.explain import NO_FUNDS, ChainRefusedError
from maxgreen.chain.orders import Ends, OrderStatus, Posting, SettlementContract
from maxgreen.clock import Clock
from maxgreen.errors import MaxgreenError
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import reader
from maxgreen.protocol.attestation import Attestation
from maxgreen.protocol.batch import parse_batch
from maxgreen.protocol.pack import canonical_json
from maxgreen.protocol.reasons import Verdict
from settlement.close import NotReadyError
from settlement.run import Run

_POSTED_AGAIN: Final = {OrderStatus.LAPSED, OrderStatus.WITHDRAWN}
_DEAD: Final = {ProposalState.CANCELED, ProposalState.DEFEATED, ProposalState.EXPIRED}


@dataclass(frozen=True)
class Posted:
    """A period's order on the chain, and how far it got."""

    order_id: int
    posting: Posting
    status: OrderStatus
    code: int = 0
    text: str = ""


class Payer:
    """Posts a period's order, carries the DAO's vote through, and claims its lines."""

    def __init__(
        self,
        deployment: Deployment,
        clock: Clock,
        operator: LocalAccount,
        members: Sequence[LocalAccount],
        evidence: str = "",
    ) -> None:
        """`members` are the DAO members whose keys this process holds: in trials all, else none.

        `evidence` says where a period's pack can be had; `{period}` stands for its name.
        """
        self._deployment = deployment
        self._contract = SettlementContract(deployment)
        self._dao = Dao(deployment, clock)
        self._operator = operator
        self._members = list(members)
        self._evidence = evidence
        self.refused: dict[str, str] = {}  # by line, why it could not be claimed

    def post(self, closed: Run) -> Posted | None:
        """Post the period's order unless it is there; None when nothing in it is payable.

        What lapsed or was withdrawn is posted again, what was rejected is not. NotReadyError when the order of another
        period waits for the DAO.
        """
        posting = self.posting(closed)
        if posting is None:
            return None
        there = self._found(posting)
        if there is not None and there.status not in _POSTED_AGAIN:
            return there
        try:
            return Posted(self._contract.post(self._operator, posting), posting, OrderStatus.POSTED)
        except ChainRefusedError as error:
            again = self._found(posting)  # another run was first
            if again is not None and again.status not in _POSTED_AGAIN:
                return again
            if error.name == "OrderOpen":
                number = self._contract.order_count()
                raise NotReadyError(f"order {number}, of another period, waits for the DAO's vote") from error
            raise

    def wait_final(self, posted: Posted) -> None:
        """NotReadyError while the chain could take the order back: nothing is voted on or packed before."""
        block = self._contract.order(posted.order_id).posted_block
        if not self._deployment.chain.is_final(block):
            raise NotReadyError(f"order {posted.order_id} is posted in block {block}, which is not final yet")

    def there(self, closed: Run) -> Posted | None:
        """Return a period's newest order, if one was posted."""
        posting = self.posting(closed)
        return self._found(posting) if posting is not None else None

    def posting(self, closed: Run) -> Posting | None:
        """Return what the chain is asked for."""
        if not closed.claims:
            return None
        return Posting(
            until_s=closed.until_s,
            root=closed.root,
            count=len(closed.claims),
            total_mws=closed.total_mws,
            manifest_digest=closed.digest,
            evidence=self._evidence.format(period=closed.period),
        )

    def decide(self, closed: Run, posted: Posted, *, wait: bool) -> ProposalState | None:
        """Carry the vote as far as it goes; None when it is for others to vote, or there is nothing to vote on."""
        if not self._members:
            return None
        proposal = next(p for p in self._attempts(closed, posted) if self._dao.state(p) not in _DEAD)
        if self._dao.state(proposal) is None and posted.status is not OrderStatus.POSTED:
            return None
        return self._dao.carry_out(proposal, self._members, wait=wait)

    def votes(self, closed: Run, posted: Posted) -> tuple[int, int, int]:
        """Return the votes against, for and abstaining of the newest attempt."""
        votes = (0, 0, 0)
        for proposal in self._attempts(closed, posted) if self._members else ():
            if self._dao.state(proposal) is None:
                break
            votes = self._dao.votes(proposal)
        return votes

    def claim(self, closed: Run, posted: Posted) -> None:
        """Claim every line of the approved order, and pay out what is credited; who is refused is in `refused`."""
        self.refused = {}
        if self._contract.claimable() != posted.order_id:
            return
        for claim in closed.claims:
            line = self._contract.line(claim.line)
            try:
                if line.paid_mws < claim.payable_total_mws:
                    self._contract.claim(self._operator, claim)
                elif line.credit_mws:
                    self._contract.collect(self._operator, claim.line)
            except ChainRefusedError as error:
                if error.name == NO_FUNDS:
                    raise
                # another was first; or the DAO, the guardian or the battery must move first: it stays claimable
                if error.name not in {"NothingNew", "NothingToCollect"}:
                    self.refused[claim.line.hex()] = str(error)

    def look(self, posted: Posted) -> Posted:
        """Return an order as it stands now."""
        order = self._contract.order(posted.order_id)
        return Posted(posted.order_id, posted.posting, order.status, order.code, order.text)

    def order_entry(self, closed: Run, posted: Posted) -> bytes:
        """Return order.json: all that anybody needs to claim a line, and nothing of a household's profile."""
        addresses = asdict(self._deployment.addresses)
        chain_id = addresses.pop("chain_id")
        posting = posted.posting
        return canonical_json(
            {
                "chain_id": chain_id,
                "contracts": addresses,
                "order": posted.order_id,
                "posting": {
                    "until": posting.until_s,
                    "root": posting.root.hex(),
                    "count": posting.count,
                    "total_mws": str(posting.total_mws),
                    "manifest": posting.manifest_digest.hex(),
                    "evidence": posting.evidence,
                },
                "claims": [claim_json(claim) for claim in closed.claims],
                "transactions": self._contract.transactions(posted.order_id),
            }
        )

    def minted_wei(self, closed: Run) -> int:
        """Return everything that was ever paid out on the order's lines, wei."""
        return sum(self._contract.line(claim.line).minted_wei for claim in closed.claims)

    def _attempts(self, closed: Run, posted: Posted) -> Iterator[Proposal]:
        """Yield the votes on an order: a dead one is followed by the next attempt.

        The description ends in the proposer's address, so that nobody else can propose and cancel it.
        """
        for number in count(1):
            text = f"Pay {closed.period}, order {posted.order_id}, attempt {number}"
            proposal = self._contract.approval(posted.order_id, posted.posting, description=text)
            yield proposal.by(self._members[0].address)

    def _found(self, posting: Posting) -> Posted | None:
        """Return the newest order with this content, if there is one."""
        for order_id, there in self._contract.posted():
            if there == posting:
                return self.look(Posted(order_id, there, OrderStatus.POSTED))
            if there.until_s < posting.until_s:
                break
        return None


def open_line(engine: Engine, deployment: Deployment, account: LocalAccount, ends: Ends) -> bytes:
    """Open a line that the DAO approved with the first attestation of each end, unless it is open; return its id."""
    contract = SettlementContract(deployment)
    if not contract.line(ends.line_id).opened_s:
        with reader(engine).begin() as connection:
            book = Book(connection)
            sent = first_attestation(book, ends.miner_token, ends.miner_channel)
            received = first_attestation(book, ends.node_token, ends.node_channel)
        contract.open_line(account, ends, sent, received)
    return ends.line_id


def first_attestation(book: Book, token: int, channel: int) -> Attestation:
    """Return a channel's first attestation since its key counts, in an accepted batch."""
    known = book.device_of(token)
    if known is None:
        raise MaxgreenError(f"system {token}: not registered, or the registry was not read yet")
    for row in book.chain_of(known.record.device):
        if row.verdict == Verdict.ACCEPTED.value and row.message:  # what was pruned is older than any need
            for attestation in parse_batch(bytes(row.message)).batch.attestations:
                if attestation.channel == channel and attestation.unix_s * 1000 >= known.record.since_ms:
                    return attestation
    raise MaxgreenError(f"system {token}: channel {channel} has attested no register yet; has its agent run?")
