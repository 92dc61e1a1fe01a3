"""Lines and payment orders as EnergySettlement has them."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from eth_abi.abi import encode as abi_encode
from eth_account.signers.local import LocalAccount
from eth_utils import keccak
from web3.logs import DISCARD

from maxgreen.chain.dao import Proposal
from maxgreen.chain.deployment import Deployment
from maxgreen.chain.registry import name_fields
from maxgreen.errors import Retryable
from maxgreen.protocol.attestation import Attestation


@dataclass(frozen=True, slots=True)
class Ends:
    """A line's ends: tokens and channel numbers."""

    miner_token: int
    miner_channel: int
    node_token: int
    node_channel: int

    @property
    def line_id(self) -> bytes:
        """keccak256(abi.encode(ends))."""
        return bytes(keccak(abi_encode(["uint256", "uint64", "uint256", "uint64"], list(self.values))))

    @property
    def values(self) -> tuple[int, int, int, int]:
        """The ends in the contract's order."""
        return self.miner_token, self.miner_channel, self.node_token, self.node_channel


@dataclass(frozen=True, slots=True)
class LossTerms:
    """How much a line may lose: resistance µΩ (or, where 0, ppm of sent), and the limit in ppm of sent."""

    resistance_uohm: int
    loss_ppm: int
    max_loss_ppm: int


@dataclass(frozen=True, slots=True)
class Reading:
    """A register at one instant: unix s, mW·s, seq of the batch that attested it."""

    time_s: int
    register_mws: int
    seq: int


@dataclass(frozen=True, slots=True)
class Line:
    """A line on the chain; energies in mW·s, acc in ninths of a wei."""

    ends: Ends
    loss: LossTerms
    base_sent: Reading
    base_received: Reading
    sent: Reading
    received: Reading
    paid_mws: int
    credit_mws: int
    acc: int
    open_order: int
    until_s: int
    minted_wei: int
    collected_block: int


class OrderStatus(IntEnum):
    """Where an order stands."""

    NONE = 0
    REQUESTED = 1
    APPROVED = 2
    REJECTED = 3


@dataclass(frozen=True, slots=True)
class Order:
    """A payment order on the chain."""

    line: bytes
    status: OrderStatus
    until_s: int
    sent: Reading
    received: Reading
    payable_total_mws: int
    batch_root: bytes
    data_root: bytes
    manifest_digest: bytes
    code: int
    text: str
    requested_block: int
    decided_block: int


@dataclass(frozen=True, slots=True)
class OrderRequest:
    """What settlement asks the chain to pay for one line."""

    line: bytes
    until_s: int
    payable_total_mws: int
    batch_root: bytes
    data_root: bytes
    manifest_digest: bytes
    sent: Attestation
    received: Attestation


class SettlementContract:
    """EnergySettlement of a deployment."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._chain = deployment.chain
        self._contract: Any = deployment.settlement
        self._functions: Any = self._contract.functions

    def line_ids(self) -> list[bytes]:
        """Return the ids of all lines, oldest first."""
        return [bytes(line) for line in self._chain.call(self._functions.lineIds())]

    def line(self, line: bytes) -> Line:
        """Return a line; ChainRefusedError NoSuchLine when there is none."""
        value = self._named("lineAt", self._chain.call(self._functions.lineAt(line)))
        ends, loss = value["ends"], value["loss"]
        return Line(
            ends=Ends(ends["minerToken"], ends["minerChannel"], ends["nodeToken"], ends["nodeChannel"]),
            loss=LossTerms(loss["resistanceUohm"], loss["lossPpm"], loss["maxLossPpm"]),
            base_sent=_reading(value["baseSent"]),
            base_received=_reading(value["baseReceived"]),
            sent=_reading(value["sent"]),
            received=_reading(value["received"]),
            paid_mws=value["paid"],
            credit_mws=value["credit"],
            acc=value["acc"],
            open_order=value["openOrder"],
            until_s=value["until"],
            minted_wei=value["minted"],
            collected_block=value["collectedBlock"],
        )

    def order(self, order_id: int) -> Order:
        """Return an order; ChainRefusedError NoSuchOrder when there is none."""
        value = self._named("orderAt", self._chain.call(self._functions.orderAt(order_id)))
        return Order(
            line=bytes(value["line"]),
            status=OrderStatus(value["status"]),
            until_s=value["until"],
            sent=_reading(value["sent"]),
            received=_reading(value["received"]),
            payable_total_mws=value["payableTotal"],
            batch_root=bytes(value["batchRoot"]),
            data_root=bytes(value["dataRoot"]),
            manifest_digest=bytes(value["manifestDigest"]),
            code=value["code"],
            text=value["text"],
            requested_block=value["requestedBlock"],
            decided_block=value["decidedBlock"],
        )

    def orders_of(self, line: bytes) -> list[int]:
        """Return the ids of a line's orders, oldest first."""
        return [int(number) for number in self._chain.call(self._functions.ordersOf(line))]

    def open_line(
        self, operator: LocalAccount, ends: Ends, loss: LossTerms, sent: Attestation, received: Attestation
    ) -> Any:
        """Open a line with its bases; return the transaction's receipt."""
        terms = (loss.resistance_uohm, loss.loss_ppm, loss.max_loss_ppm)
        call = self._functions.openLine(ends.values, terms, _attestation(sent), _attestation(received))
        return self._chain.transact(operator, call)

    def request(self, operator: LocalAccount, wanted: OrderRequest) -> int:
        """Request an order; return its number, from the transaction's own event."""
        value = (
            wanted.line,
            wanted.until_s,
            wanted.payable_total_mws,
            wanted.batch_root,
            wanted.data_root,
            wanted.manifest_digest,
            _attestation(wanted.sent),
            _attestation(wanted.received),
        )
        receipt = self._chain.transact(operator, self._functions.request(value))
        for event in self._contract.events.OrderRequested().process_receipt(receipt, errors=DISCARD):
            if event["address"] == self._contract.address and bytes(event["args"]["line"]) == wanted.line:
                return int(event["args"]["orderId"])
        raise Retryable("the chain's RPC gave a receipt without the order: run it again, with another RPC")

    def approval(self, orders: dict[int, bytes], description: str) -> Proposal:
        """Return the proposal that approves orders with the data roots voted on."""
        call = self._functions.approve(list(orders), list(orders.values()))
        return Proposal((call,), description)

    def rejection(self, order_id: int, code: int, text: str) -> Proposal:
        """Return the proposal that rejects an order with a code and a reason."""
        return Proposal((self._functions.reject(order_id, code, text),), f"Reject order {order_id}: {text}")

    def collect(self, account: LocalAccount, line: bytes) -> Any:
        """Pay out a line's credit; return the transaction's receipt."""
        return self._chain.transact(account, self._functions.collect(line))

    def transactions(self, order_id: int) -> dict[str, str]:
        """Return the hashes of the transactions that requested, decided and last paid an order's line."""
        order = self.order(order_id)
        events = self._contract.events
        decided = events.OrderApproved() if order.status is OrderStatus.APPROVED else events.OrderRejected()
        wanted = {
            "request": (events.OrderRequested(), order.requested_block),
            "decision": (decided, order.decided_block),
            "collect": (events.Collected(), self.line(order.line).collected_block),
        }
        found = {}
        for name, (event, block) in wanted.items():
            for entry in self._chain.events(event, block) if block else ():
                if bytes(entry["args"]["line"]) == order.line:
                    found[name] = "0x" + bytes(entry["transactionHash"]).hex()
        return found

    def _named(self, function: str, value: Any) -> Any:
        return name_fields(self._contract.get_function_by_name(function).abi["outputs"][0], value)


def _reading(value: dict[str, int]) -> Reading:
    return Reading(value["time"], value["register"], value["seq"])


def _attestation(attestation: Attestation) -> tuple[int, int, int, bytes, bytes]:
    return (
        attestation.unix_s,
        attestation.register_mws,
        attestation.seq,
        attestation.signature[:32],
        attestation.signature[32:],
    )
