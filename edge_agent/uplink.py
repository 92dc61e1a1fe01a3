"""Sends the spool in order and listens to the backend; nothing waits anywhere but in the spool."""

import json
import logging
import queue
import random
import time
from collections.abc import Callable
from typing import Any, Final

from edge_agent import resend
from edge_agent.mqtt_link import Link
from edge_agent.resend import Flight
from edge_agent.spool import DamagedError, MediumError, Spool
from maxgreen.clock import Clock
from maxgreen.mqtt import Acknowledged, Connected, Denied, Disconnected, Incoming, Notice
from maxgreen.protocol.backend import BackendKeys, Beacon, Command, Receipt, UnknownKey
from maxgreen.protocol.cose import network_digest
from maxgreen.protocol.identity import BEACON_TOPIC, device_topic
from maxgreen.protocol.reasons import Reason, Rejected

_LOG: Final = logging.getLogger(__name__)
FUTURE_S: Final = 300
RECEIPT_WAIT_S: Final = 5.0  # after a connection, for the receipt that the broker retains
_DENIED_WAIT_S: Final = 300.0
_AHEAD_WINDOWS: Final = 3  # batches without a receipt, in windows of batches that the broker has not answered
_READ: Final = 20  # batches read from the spool at once
_MOST_NOTICES: Final = 200  # handled in one call
_BACKEND_SILENCE_S: Final = 300.0  # a beacon after so long says that the backend is back
_SAY_EVERY_S: Final = 60.0
# a batch that waits for another, or for its date, may still count
_COUNTS: Final = frozenset({Reason.NONE, Reason.GAP_BEFORE, Reason.CLOCK_UNSYNCHRONISED})


class Uplink:
    """One device's batches out, receipts, beacons and commands in; one thread calls it."""

    def __init__(
        self,
        link: Link,
        spool: Spool,
        device: bytes,
        keys: BackendKeys,
        network: str,
        clock: Clock,
        *,
        window: int,
        resend_s: float,
    ) -> None:
        self._link = link
        self._spool = spool
        self._device = device
        self._keys = keys
        self._network = network
        self._clock = clock
        self._window = window
        self._resend_s = resend_s
        self._chance = random.random
        self._flight = Flight()
        self._tickets: dict[int, int] = {}  # batches that the broker has not answered: seq
        self._retained: dict[str, int] = {}  # topics whose last value the broker has not answered: ticket
        self._chunk: dict[int, bytes] = {}
        self._hold_s = 0.0  # nothing is sent before
        self._session = 0
        self._read_session = -1  # the connection over which the retained receipt was read
        self._connected_s: float | None = None
        self._unanswered_s = time.monotonic()
        self._receipt: Receipt | None = None
        self._beacon: tuple[tuple[int, int], float] = ((-1, -1), float("-inf"))  # the newest, and when it was heard
        self._dropped = 0
        self._say_due_s = 0.0
        self.sessions = 0  # how often the broker took us
        self.dated = True  # whether the clock is synchronised
        self.alarm: str | None = None  # the backend's receipt contradicts this chain: nothing is sent (P-RCT-3)
        self.rejected: tuple[int, int] | None = None  # seq and reason, where the newest batch does not count
        self.missing: str | None = None  # the ledger asks for what is not in the spool any more (P-RCT-2)
        self.damaged: set[int] = set()  # batches that the medium changed
        self.unknown_key: str | None = None  # receipts come from a key that is not pinned
        self.denied: str | None = None  # the broker refuses what we publish
        self.deaf: str | None = None  # the broker does not let us listen
        self.refused: str | None = None  # the broker refuses us
        self.medium_fault = ""
        self.beacons: list[Beacon] = []
        self.commands: list[Command] = []
        last = spool.last_receipt()
        if last is not None:
            try:
                self._receipt = keys.open_receipt(last)
            except Rejected as error:  # the backend's key was replaced: the broker retains a newer receipt
                _LOG.warning("the spool's last receipt is not used: %s", error)
        self._flight = Flight(self._sendable(self._receipt.next_seq if self._receipt else 0))

    def start(self) -> None:
        """Begin to connect."""
        self._link.start()

    def listen(self, heard: Callable[[bytes], None]) -> None:
        """Let `heard` hear each command as it comes, in the connection's own thread."""
        self._link.heard = heard

    @property
    def keys(self) -> BackendKeys:
        """The backend's keys that are pinned."""
        return self._keys

    @property
    def receipt(self) -> Receipt | None:
        """The newest receipt."""
        return self._receipt

    @property
    def connected(self) -> bool:
        """Whether the broker is there."""
        return self._connected_s is not None

    @property
    def delivered(self) -> bool:
        """Whether the ledger has everything that was sealed."""
        return self._receipt is not None and self._receipt.next_seq >= self._spool.tip.next_seq

    @property
    def unanswered_s(self) -> float:
        """How long the backend has not answered what was sent over this connection, s."""
        if self._connected_s is None or not self._flight.sent_s:
            return 0.0
        return time.monotonic() - max(self._connected_s, self._unanswered_s)

    def process(self, timeout_s: float = 0) -> None:
        """Handle what came in, then send what may be sent; waits up to `timeout_s` for something to come."""
        try:
            self._listen(timeout_s)
            self._send()
        except MediumError as error:  # nothing is lost by it: batches stay, and receipts come again
            if not self.medium_fault:
                _LOG.error("%s", error)
            self.medium_fault = str(error)
        else:
            self.medium_fault = ""

    def wake(self) -> None:
        """End a wait for something to come; a signal handler may call it.

        A signal that is handled for longer than the wait had left would make the wait endless (CPython's SimpleQueue).
        """
        self._link.notices.put(None)

    def _listen(self, timeout_s: float) -> None:
        notices = self._link.notices
        try:
            self._handle(notices.get(timeout=timeout_s) if timeout_s else notices.get_nowait())
            for _ in range(_MOST_NOTICES):
                self._handle(notices.get_nowait())
        except queue.Empty:
            pass

    def publish_json(self, channel: str, value: dict[str, Any]) -> bool:
        """Publish a retained plain JSON message for people and Home Assistant; False when it can't go now."""
        return self.publish_retained(device_topic(self._device, channel), value)

    def publish_retained(self, topic: str, value: dict[str, Any]) -> bool:
        """Publish retained plain JSON on a topic of this device; False while the value before it has no answer."""
        if topic in self._retained:
            return False
        ticket = self._link.publish(topic, json.dumps(value).encode(), retain=True, session=self._session)
        if ticket is not None:
            self._retained[topic] = ticket
        return ticket is not None

    def stop(self, boot_id: bytes | None) -> None:
        """Say goodbye (a retired key has said it already) and close."""
        if boot_id is not None:
            self._retained.clear()
            self.publish_json("status", {"status": "offline", "boot": boot_id.hex()})
        self._link.stop()

    def _handle(self, notice: Notice | None) -> None:
        match notice:
            case None:
                pass
            case Connected(session):
                self._connected_s, self._session = time.monotonic(), session
                self.sessions += 1
                self.refused = None
                if self._read_session != session:  # a broker may send it before it answers our subscriptions
                    self._hold_s = max(self._hold_s, self._connected_s + RECEIPT_WAIT_S)
            case Disconnected(reason, refused):
                self._connected_s, self.deaf = None, None
                self.refused = reason if refused or "taken over" in reason else None
                self._flight = resend.lost(self._flight, set(self._tickets.values()))
                self._tickets.clear()
                self._retained.clear()
            case Denied(topic, reason):
                self.deaf = f"listening to {topic}: {reason}"
            case Acknowledged(ticket, refused):
                self._acknowledged(ticket, refused)
            case Incoming():
                try:
                    self._receive(notice)
                except Rejected as error:
                    self._drop(notice.topic, error)

    def _acknowledged(self, ticket: int, refused: str) -> None:
        seq = self._tickets.pop(ticket, None)
        if seq is None:
            self._retained = {topic: one for topic, one in self._retained.items() if one != ticket}
            return
        if not refused:
            self.denied = None
            return
        if self.denied is None:
            _LOG.error("the broker refuses this device's batches: %s", refused)
        self.denied = f"sending batches: {refused}"
        self._flight = resend.lost(self._flight, {seq})
        self._hold_s = time.monotonic() + _DENIED_WAIT_S * (1 + self._chance())

    def _receive(self, notice: Incoming) -> None:
        topic, payload = notice.topic, notice.payload
        if topic == BEACON_TOPIC:
            self._take_beacon(self._keys.open_beacon(payload))
        elif topic == device_topic(self._device, "receipt"):
            try:
                receipt = self._keys.open_receipt(payload)
            except UnknownKey as error:
                self.unknown_key = str(error)
                raise
            self._take_receipt(receipt, payload)
            if notice.retained and receipt.device == self._device:
                self._read_session = notice.session
                self._hold_s = self._hold_s if self.denied else 0.0
        elif topic == device_topic(self._device, "command"):
            self.commands.append(self._keys.open_command(payload))

    def _drop(self, topic: str, error: Rejected) -> None:
        self._dropped += 1
        if time.monotonic() >= self._say_due_s:
            _LOG.warning("message on %s dropped: %s (%d so far)", topic, error, self._dropped)
            self._say_due_s = time.monotonic() + _SAY_EVERY_S

    def _take_beacon(self, beacon: Beacon) -> None:
        newest, heard_s = self._beacon
        found = beacon.issued_s, beacon.number  # numbers go back with a ledger that was restored
        if found <= newest:
            return
        now_s = time.monotonic()
        if now_s - heard_s > _BACKEND_SILENCE_S:
            self._flight = resend.awake(self._flight, now_s, resend_s=self._resend_s, chance=self._chance)
        self._beacon = found, now_s
        self.beacons.append(beacon)

    def _take_receipt(self, receipt: Receipt, message: bytes) -> None:
        """Note how far the ledger is (P-RCT-2), or stop sending when it contradicts the chain (P-RCT-3)."""
        if receipt.device != self._device:
            return
        latest_ms = self._clock.now_ms() + FUTURE_S * 1000
        if self.dated and receipt.server_ms > latest_ms:
            return
        known_ms = self._receipt.server_ms if self._receipt else -1
        if receipt.server_ms < known_ms and not (
            self.dated and known_ms > latest_ms
        ):  # taken while nobody knew the time
            return
        self.unknown_key = None
        if not (agrees(self._spool, receipt, self._network) or receipt.next_seq - 1 in self.damaged):
            if self.alarm is None:
                _LOG.error("the backend's receipt contradicts this chain at seq %d; sending stops", receipt.next_seq)
            self.alarm = f"receipt for seq {receipt.next_seq} contradicts this device's chain"
            return
        if self.alarm is not None:
            _LOG.warning("the backend's receipts agree with this chain again; sending goes on")
        self.alarm = None
        self._receipt = receipt
        if receipt.verdicts:
            newest = max(receipt.verdicts)
            self.rejected = newest if newest[1] not in _COUNTS else None
        self.damaged = {seq for seq in self.damaged if seq >= receipt.next_seq}
        self._go_on_at(receipt.next_seq, hole=bool(receipt.held))
        self._unanswered_s = time.monotonic()
        self._spool.receipted(receipt, message)
        self._note_missing()

    def _sendable(self, seq: int) -> int:
        """Return the first batch from `seq` on that can be sent; what is gone or damaged leaves a hole (P-ING-4)."""
        seq = max(seq, self._spool.oldest_seq())
        while seq in self.damaged:
            seq += 1
        return seq

    def _go_on_at(self, seq: int, *, hole: bool = False) -> None:
        """Wait for no receipt below `seq` any longer; `hole`: the ledger holds batches beyond it."""
        first = self._sendable(seq)
        hole = hole and first == seq
        self._flight = resend.receipted(
            self._flight, first, time.monotonic(), resend_s=self._resend_s, chance=self._chance, hole=hole
        )
        self._tickets = {ticket: at for ticket, at in self._tickets.items() if at >= first}

    def _note_missing(self) -> None:
        """Raise the alarm, or end it, that the ledger asks for batches that are not here any more (P-RCT-2)."""
        asked, oldest = self._receipt.next_seq if self._receipt else 0, self._spool.oldest_seq()
        if asked >= oldest:
            self.missing = None
            return
        text = f"the ledger asks for batch {asked}, the spool begins at {oldest}"
        if text != self.missing:
            _LOG.error("%s", text)
        self.missing = text

    def _send(self) -> None:
        now_s = time.monotonic()
        if self._connected_s is None or self.alarm is not None or now_s < self._hold_s:
            return
        for _ in range(self._window if self.denied is None else 1):
            tip, ahead = self._spool.tip, _AHEAD_WINDOWS * self._window
            seq = resend.due(self._flight, now_s, next_seq=tip.next_seq, ahead=ahead)
            if seq is None:
                return
            message = self._message(seq)
            if message is None:
                if seq == self._flight.first:
                    self._go_on_at(seq)
                    continue
            else:
                topic = device_topic(self._device, "batch")
                ticket = self._link.publish(topic, message, retain=False, session=self._session)
                if ticket is None:
                    return
                self._tickets[ticket] = seq
            if not self._flight.sent_s:
                self._unanswered_s = now_s
            self._flight = resend.sent(self._flight, seq, now_s, resend_s=self._resend_s, chance=self._chance)

    def _message(self, seq: int) -> bytes | None:
        """Return a batch; None for one that the medium changed: what is whole goes on without it."""
        if seq in self.damaged:
            return None
        if seq not in self._chunk:
            try:
                self._chunk = dict(self._spool.messages(seq, _READ))
            except DamagedError as error:
                first = seq if error.seq is None else error.seq
                self.damaged.add(first)
                _LOG.error("%s", error)
                if first == seq:
                    return None
                self._chunk = dict(self._spool.messages(seq, first - seq))
        return self._chunk[seq]


def agrees(spool: Spool, receipt: Receipt, network: str) -> bool:
    """Tell whether a receipt is one for this chain (P-RCT-3)."""
    tip = spool.tip
    if receipt.next_seq > tip.next_seq:
        return False
    if receipt.next_seq == 0:
        return receipt.head == network_digest(network)
    if receipt.next_seq == tip.next_seq:
        return receipt.head == tip.head
    known = spool.digest(receipt.next_seq - 1)
    return known is None or receipt.head == known


def retained_receipt(link: Link, device: bytes, keys: BackendKeys, wait_s: float) -> Receipt | None:
    """Return the receipt that the broker retains for a device; without it the newest that came in time, if any."""
    link.start()
    deadline, newest = time.monotonic() + wait_s, None
    try:
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                notice = link.notices.get(timeout=left_s)
            except queue.Empty:
                break
            if isinstance(notice, Incoming) and notice.topic == device_topic(device, "receipt"):
                try:
                    receipt = keys.open_receipt(notice.payload)
                except Rejected as error:
                    _LOG.warning("receipt dropped: %s", error)
                    continue
                if receipt.device != device:
                    continue
                if newest is None or receipt.server_ms >= newest.server_ms:
                    newest = receipt
                if notice.retained:  # what queued while the device was away is older
                    break
    finally:
        link.stop()
    return newest
