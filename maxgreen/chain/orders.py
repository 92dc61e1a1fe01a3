"""Lines as LineBook has them; orders and claims as EnergySettlement has them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any, Final

from eth_abi.abi import encode as abi_encode
from eth_account.signers.local import LocalAccount
from eth_utils import keccak
from web3.logs import DISCARD

from maxgreen.chain.dao import Proposal
from maxgreen.chain.deployment import Deployment
from maxgreen.chain.registry import name_fields
from maxgreen.errors import Retryable
from maxgreen.protocol.attestation import Attestation


@lru_cache(1_024)
def _line_id(ends: tuple[int, int, int, int, int]) -> bytes:
    return bytes(keccak(abi_encode(["uint48", "uint64", "uint48", "uint64", "uint32"], list(ends))))


@dataclass(frozen=True, slots=True)
class Ends:
    """A line's ends: tokens and channel numbers. After it was closed, another between them has the next epoch."""

    miner_token: int
    miner_channel: int
    node_token: int
    node_channel: int
    epoch: int = 0

    @property
    def line_id(self) -> bytes:
        """keccak256(abi.encode(ends))."""
        return _line_id(self.values)

    @property
    def values(self) -> tuple[int, int, int, int, int]:
        """The ends in the contract's order."""
        return self.miner_token, self.miner_channel, self.node_token, self.node_channel, self.epoch


@dataclass(frozen=True, slots=True)
class LossTerms:
    """How much a line may lose: resistance µΩ (or, where 0, ppm of sent), and the limit in ppm of sent."""

    resistance_uohm: int
    loss_ppm: int
    max_loss_ppm: int


@dataclass(frozen=True, slots=True)
class Reading:
    """A register at one instant: unix s, mW·s, seq of the batch that attested it, number of the key that signed."""

    time_s: int
    register_mws: int
    seq: int
    key_number: int = 0


@dataclass(frozen=True, slots=True)
class Line:
    """A line on the chain; energies in mW·s; `hold` is the code of the DAO's hold, or 0."""

    ends: Ends
    loss: LossTerms
    opened_s: int
    closed_s: int
    base_sent: Reading
    base_received: Reading
    sent: Reading
    received: Reading
    carried_sent_mws: int
    carried_received_mws: int
    paid_mws: int
    credit_mws: int
    forfeited_mws: int
    until_s: int
    minted_wei: int
    hold: int = 0

    @property
    def minted_mws(self) -> int:
        """The energy that tokens were minted for."""
        return self.paid_mws - self.credit_mws - self.forfeited_mws


class OrderStatus(IntEnum):
    """Where an order stands; `lapsed` is a posted one that was not decided in time."""

    NONE = 0
    POSTED = 1
    APPROVED = 2
    REJECTED = 3
    WITHDRAWN = 4
    LAPSED = 5

    @property
    def label(self) -> str:
        """The status as people and packs write it."""
        return self.name.lower()


_POSTING: Final = "(uint64,bytes32,uint32,uint128,bytes32,string)"


@dataclass(frozen=True, slots=True)
class Posting:
    """All lines of a period: end (unix s), root over the leaves, sum of all lines' payable totals (mW·s), evidence."""

    until_s: int
    root: bytes
    count: int
    total_mws: int
    manifest_digest: bytes
    evidence: str = ""

    @property
    def values(self) -> tuple[int, bytes, int, int, bytes, str]:
        """The posting in the contract's order."""
        return self.until_s, self.root, self.count, self.total_mws, self.manifest_digest, self.evidence

    def content(self, order_id: int) -> bytes:
        """Return the hash that the chain keeps of it."""
        return bytes(keccak(abi_encode(["uint256", _POSTING], [order_id, self.values])))


@dataclass(frozen=True, slots=True)
class Order:
    """An order on the chain; `code` and `text` say why it was rejected."""

    content: bytes
    status: OrderStatus
    posted_s: int
    posted_block: int
    decided_block: int
    code: int
    text: str


@dataclass(frozen=True, slots=True)
class Closing:
    """The last register that a key of an end attested before the next one; None where it attested none."""

    miner_end: bool
    key_number: int
    attestation: Attestation | None


@dataclass(frozen=True, slots=True)
class Claim:
    """A line's leaf in an order with its proof, and the attestations of its two cuts."""

    line: bytes
    payable_total_mws: int
    manifest: bytes
    proof: tuple[bytes, ...]
    sent: Attestation
    received: Attestation
    closings: tuple[Closing, ...] = ()  # of the keys before those that the cuts are by

    def leaf(self, until_s: int) -> tuple[int, bytes, int, int, int, bytes, int, int]:
        """Return the leaf of an order's tree (LINE_LEAF)."""
        registers = (self.sent.register_mws, self.received.register_mws)
        times = (self.sent.unix_s, self.received.unix_s)
        return (until_s, self.line, *registers, self.payable_total_mws, self.manifest, *times)


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Why the DAO leaves a line out: code and text."""

    line: bytes
    code: int
    text: str

    @property
    def values(self) -> tuple[bytes, int, str]:
        """The exclusion in the contract's order."""
        return self.line, self.code, self.text


class SettlementContract:
    """LineBook and EnergySettlement of a deployment."""

    def __init__(self, deployment: Deployment) -> None:
        self._chain = deployment.chain
        self._contract: Any = deployment.settlement
        self._book: Any = deployment.line_book
        self._functions: Any = self._contract.functions

    def line_ids(self) -> list[bytes]:
        """Return the ids of all lines that the DAO approved, oldest first."""
        return [bytes(line) for line in self._chain.call(self._book.functions.lineIds())]

    def opened_lines(self) -> list[Line]:
        """Return the lines that were opened, closed ones too, oldest first."""
        return [line for line in map(self.line, self.line_ids()) if line.opened_s]

    def line(self, line: bytes, *, at: int | str = "latest") -> Line:
        """Return a line, as of a block; ChainRefusedError NoSuchLine when the DAO never approved it."""
        value = _named(self._book, "lineAt", self._chain.call(self._book.functions.lineAt(line), at=at))
        hold = _named(self._book, "holdOf", self._chain.call(self._book.functions.holdOf(line), at=at))
        ends, loss = value["ends"], value["loss"]
        return Line(
            ends=Ends(*(ends[n] for n in ("minerToken", "minerChannel", "nodeToken", "nodeChannel", "epoch"))),
            loss=LossTerms(loss["resistanceUohm"], loss["lossPpm"], loss["maxLossPpm"]),
            opened_s=value["openedAt"],
            closed_s=value["closedAt"],
            base_sent=_reading(value["baseSent"]),
            base_received=_reading(value["baseReceived"]),
            sent=_reading(value["sent"]),
            received=_reading(value["received"]),
            carried_sent_mws=value["carriedSent"],
            carried_received_mws=value["carriedReceived"],
            paid_mws=value["paid"],
            credit_mws=value["credit"],
            forfeited_mws=value["forfeited"],
            until_s=value["sent"]["until"],
            minted_wei=value["minted"],
            hold=hold["code"] if hold["heldBlock"] else 0,
        )

    def time_of(self, block: int) -> int:
        """Return the time of a block, unix s."""
        return self._chain.block(block).time_s

    def hold_text(self, line: bytes) -> str:
        """Return why the DAO holds a line, or nothing."""
        block = _named(self._book, "holdOf", self._chain.call(self._book.functions.holdOf(line)))["heldBlock"]
        found = self._chain.events(self._book.events.LineHeld(), block) if block else []
        return next((str(event["args"]["text"]) for event in reversed(found) if event["args"]["line"] == line), "")

    def order(self, order_id: int) -> Order:
        """Return an order; ChainRefusedError NoSuchOrder when there is none."""
        value = _named(self._contract, "orderAt", self._chain.call(self._functions.orderAt(order_id)))
        status = OrderStatus(value["status"])
        if status is OrderStatus.POSTED and not self._chain.call(self._functions.isOpen(order_id)):
            status = OrderStatus.LAPSED
        text = ""
        if status is OrderStatus.REJECTED:
            events = self._chain.events(self._contract.events.OrderRejected(), value["decidedBlock"])
            text = next((str(e["args"]["text"]) for e in events if e["args"]["orderId"] == order_id), "")
        return Order(
            content=bytes(value["content"]),
            status=status,
            posted_s=value["postedAt"],
            posted_block=value["postedBlock"],
            decided_block=value["decidedBlock"],
            code=value["code"],
            text=text,
        )

    def order_count(self) -> int:
        """Return how many orders were posted: their numbers are 1 and up."""
        return int(self._chain.call(self._functions.orders()))

    def claimable(self) -> int:
        """Return the number of the newest approved order, whose leaves can be claimed; 0 when there is none."""
        return int(self._chain.call(self._functions.current())[1])

    def claimable_until_s(self) -> int:
        """Return when the period of the newest approved order ends, unix s; 0 when there is none."""
        return int(self._chain.call(self._functions.current())[3])

    def node_share_ppm(self) -> int:
        """Return which part of what is minted the node's owner gets; the miner's owner gets the rest."""
        return int(self._chain.call(self._functions.nodeSharePpm()))

    def total_paid_mws(self) -> int:
        """Return what was ever claimed on all lines, mW·s."""
        return int(self._chain.call(self._book.functions.totalPaid()))

    def posting(self, order_id: int) -> Posting:
        """Return what an order asks for, from its event, checked against the hash that the chain keeps."""
        order = self.order(order_id)
        for event in self._chain.events(self._contract.events.OrderPosted(), order.posted_block):
            if event["args"]["orderId"] == order_id:
                value = event["args"]["posting"]
                names = ("until", "root", "count", "total", "manifestDigest", "evidence")
                posting = Posting(*(value[name] for name in names))
                if posting.content(order_id) == order.content:
                    return posting
        raise Retryable(f"the chain's RPC does not have the event of order {order_id}: ask another one")

    def posted(self) -> Iterator[tuple[int, Posting]]:
        """Yield all orders, the newest first."""
        for order_id in range(self.order_count(), 0, -1):
            yield order_id, self.posting(order_id)

    def line_approval(self, lines: Sequence[tuple[Ends, LossTerms]]) -> Proposal:
        """Return the proposal that allows lines with what they may lose."""
        calls = tuple(
            self._book.functions.approveLine(e.values, (t.resistance_uohm, t.loss_ppm, t.max_loss_ppm))
            for e, t in lines
        )
        names = ", ".join(f"{e.miner_token}.{e.miner_channel} to {e.node_token}.{e.node_channel}" for e, _ in lines)
        return Proposal(calls, f"Approve lines {names}")

    def open_line(self, account: LocalAccount, ends: Ends, sent: Attestation, received: Attestation) -> Any:
        """Open a line that the DAO approved, with its bases; return the transaction's receipt."""
        call = self._functions.openLine(ends.line_id, attestation_values(sent), attestation_values(received))
        return self._chain.transact(account, call)

    def next_key(self, account: LocalAccount, line: bytes, *, miner_end: bool) -> Any:
        """Let a line's end go on with its next key; what is known of the one before is carried."""
        return self._chain.transact(account, self._functions.nextKey(line, miner_end))

    def show_closing(self, account: LocalAccount, line: bytes, closing: Attestation, *, miner_end: bool) -> Any:
        """Show a later register of an earlier key: the difference is carried, too."""
        call = self._functions.showClosing(line, miner_end, attestation_values(closing))
        return self._chain.transact(account, call)

    def prove_fraud(
        self, account: LocalAccount, token: int, key_number: int, first: Attestation, second: Attestation
    ) -> Any:
        """Show two attestations of a device that contradict each other (P-ATT-2): the system is suspended."""
        pair = (attestation_values(first), attestation_values(second))
        return self._chain.transact(account, self._functions.proveFraud(token, first.channel, key_number, *pair))

    def post(self, operator: LocalAccount, posting: Posting) -> int:
        """Post an order; return its number, from the transaction's own event."""
        receipt = self._chain.transact(operator, self._functions.post(posting.values))
        for event in self._contract.events.OrderPosted().process_receipt(receipt, errors=DISCARD):
            if event["address"] == self._contract.address:
                return int(event["args"]["orderId"])
        raise Retryable("the chain's RPC gave a receipt without the order: run it again, with another RPC")

    def withdraw(self, operator: LocalAccount, order_id: int) -> Any:
        """Take an undecided order back."""
        return self._chain.transact(operator, self._functions.withdraw(order_id))

    def approval(
        self, order_id: int, posting: Posting, exclusions: Sequence[Exclusion] = (), description: str = ""
    ) -> Proposal:
        """Return the proposal that approves an order as it stands, without the excluded lines."""
        call = self._functions.approve(order_id, posting.values, [e.values for e in exclusions])
        return Proposal((call,), description or f"Approve order {order_id}")

    def rejection(self, order_id: int, posting: Posting, code: int, text: str) -> Proposal:
        """Return the proposal that rejects an order with a code and a reason."""
        call = self._functions.reject(order_id, posting.content(order_id), code, text)
        return Proposal((call,), f"Reject order {order_id}: {text}")

    def holding(self, exclusion: Exclusion) -> Proposal:
        """Return the proposal that stops the payment of a line."""
        text = f"Hold line {exclusion.line.hex()}: {exclusion.text}"
        return Proposal((self._functions.hold(exclusion.values),), text)

    def releasing(self, line: bytes) -> Proposal:
        """Return the proposal that lets a held line be paid again."""
        return Proposal((self._functions.release(line),), f"Release line {line.hex()}")

    def forfeiting(self, line: bytes) -> Proposal:
        """Return the proposal that takes back what a line was credited and not paid."""
        return Proposal((self._functions.forfeit(line),), f"Forfeit the credit of line {line.hex()}")

    def closing(self, line: bytes) -> Proposal:
        """Return the proposal that closes a line: its channels are free for another."""
        return Proposal((self._book.functions.close(line),), f"Close line {line.hex()}")

    def agree_to_close(self, owner: LocalAccount, line: bytes) -> Any:
        """Close a line in the name of one of its two owners; it closes when both did."""
        return self._chain.transact(owner, self._book.functions.agreeToClose(line))

    def claim(self, account: LocalAccount, claim: Claim) -> Any:
        """Claim a line's part of the approved order, and pay it out as far as there is room.

        Where a key was changed the line goes on with the next one first, and is shown what the one before measured.
        """
        for closing in claim.closings:
            self._hand_over(account, claim.line, closing)
        value = (
            claim.line,
            claim.payable_total_mws,
            claim.manifest,
            list(claim.proof),
            attestation_values(claim.sent),
            attestation_values(claim.received),
        )
        return self._chain.transact(account, self._functions.claim(value))

    def _hand_over(self, account: LocalAccount, line: bytes, closing: Closing) -> None:
        """Let an end of a line go on from an earlier key, unless it did, and show the key's last register."""
        there = self.line(line)
        if (there.sent if closing.miner_end else there.received).key_number == closing.key_number:
            self.next_key(account, line, miner_end=closing.miner_end)
        if closing.attestation is None:
            return
        known = self._book.functions.closingOf(line, closing.miner_end, closing.key_number)
        if _named(self._book, "closingOf", self._chain.call(known))["register"] < closing.attestation.register_mws:
            self.show_closing(account, line, closing.attestation, miner_end=closing.miner_end)

    def collect(self, account: LocalAccount, line: bytes) -> Any:
        """Pay out a line's credit; return the transaction's receipt."""
        return self._chain.transact(account, self._functions.collect(line))

    def transactions(self, order_id: int) -> dict[str, str]:
        """Return the hashes of the transactions that posted and decided an order."""
        order = self.order(order_id)
        events = self._contract.events
        decided = {
            OrderStatus.APPROVED: events.OrderApproved(),
            OrderStatus.REJECTED: events.OrderRejected(),
            OrderStatus.WITHDRAWN: events.OrderWithdrawn(),
        }.get(order.status)
        wanted = {"post": (events.OrderPosted(), order.posted_block), "decision": (decided, order.decided_block)}
        found = {}
        for name, (event, block) in wanted.items():
            for entry in self._chain.events(event, block) if event is not None and block else ():
                if entry["args"]["orderId"] == order_id:
                    found[name] = "0x" + bytes(entry["transactionHash"]).hex()
        return found


def _named(contract: Any, function: str, value: Any) -> Any:
    return name_fields(contract.get_function_by_name(function).abi["outputs"][0], value)


def _reading(value: dict[str, int]) -> Reading:
    return Reading(value["time"], value["register"], value["seq"], value["keyNumber"])


def attestation_values(attestation: Attestation) -> tuple[int, int, int, bytes, bytes]:
    """Return an attestation in the contracts' order."""
    return (
        attestation.unix_s,
        attestation.register_mws,
        attestation.seq,
        attestation.signature[:32],
        attestation.signature[32:],
    )
