"""Opening a group: each message's form, device, signature and shares; no chain is looked at (P-ING-3 a)."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from typing import Final, Protocol

from maxgreen.ledger.desk import Desk
from maxgreen.protocol.batch import SignedBatch
from maxgreen.protocol.cose import check_group
from maxgreen.protocol.reasons import Rejected
from maxgreen.verify.rules import DeviceRecord, Rules
from maxgreen.verify.shares import ShareCheck, check_together, shares_of
from maxgreen.verify.verdict import read_message, sender_of

_PART: Final = 96  # signatures that one thread checks in a row, beside other threads


class Message(Protocol):
    """What came from a broker."""

    @property
    def topic(self) -> str:
        """The topic that it was sent to."""
        ...

    @property
    def payload(self) -> bytes:
        """Its bytes."""
        ...


def read_all(messages: Sequence[Message]) -> list[SignedBatch | Rejected]:
    """Read the form of each message."""
    return [_read(message) for message in messages]


def check_all(
    messages: Sequence[Message],
    read: Sequence[SignedBatch | Rejected],
    find: Callable[[bytes], DeviceRecord | None],
    network: str,
    received_ms: int,
    pool: Executor,
) -> list[SignedBatch | Rejected]:
    """Check topic, device and signature of each message whose form is right, on the threads of a pool."""
    opened: list[SignedBatch | Rejected] = []
    signed: list[tuple[int, DeviceRecord, SignedBatch]] = []  # by their place in the group
    for message, one in zip(messages, read, strict=True):
        if not isinstance(one, Rejected):
            try:
                signed.append((len(opened), sender_of(one, message.topic, received_ms, find), one))
            except Rejected as rejected:
                opened.append(rejected)
                continue
        opened.append(one)
    parts = [signed[start : start + _PART] for start in range(0, len(signed), _PART)]
    checked = pool.map(
        lambda part: check_group([(one.envelope, record.verifier) for _, record, one in part], network, "batch"), parts
    )
    for part, errors in zip(parts, checked, strict=True):
        for (where, _, _), error in zip(part, errors, strict=True):
            if error is not None:
                opened[where] = error
    return opened


def named(read: Iterable[SignedBatch | Rejected]) -> set[bytes]:
    """Return the devices that messages name: whose key signed them, and the ones that they succeed."""
    found = set()
    for signed in read:
        if not isinstance(signed, Rejected):
            found.add(signed.envelope.key_id)
            if signed.batch.succeeds is not None:
                found.add(signed.batch.succeeds[0])
    return found


def places_to_ask(desk: Desk, opened: Iterable[SignedBatch | Rejected]) -> set[tuple[bytes, int]]:
    """Return the places of which the ledger may hold a message already: below the chain's end, or ahead of it."""
    asked = set()
    for signed in opened:
        if not isinstance(signed, Rejected):
            chain = desk.chains[signed.envelope.key_id]
            if signed.batch.seq < chain.state.next_seq or chain.waiting:
                asked.add((chain.device, signed.batch.seq))
    return asked


def check_shares_of(opened: Iterable[SignedBatch | Rejected], rules: Rules, pool: Executor) -> ShareCheck:
    """Check the shares of a group together."""
    return check_together(shares_of((one for one in opened if not isinstance(one, Rejected)), rules.beacons), pool)


def _read(message: Message) -> SignedBatch | Rejected:
    try:
        return read_message(message.payload)
    except Rejected as error:
        return error
