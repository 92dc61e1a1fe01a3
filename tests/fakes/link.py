"""A broker connection in memory."""

import hashlib
import queue

from maxgreen.mqtt import Acknowledged, Connected, Disconnected, Incoming
from maxgreen.protocol.backend import Receipt, sign_receipt
from maxgreen.protocol.batch import parse_batch
from maxgreen.protocol.cose import network_digest
from maxgreen.protocol.identity import device_topic


class FakeLink:
    def __init__(self):
        self.notices = queue.SimpleQueue()
        self.sent = []
        self.up = False
        self.session = 0
        self.silent = False  # the broker answers nothing
        self.answer = ""  # why it refuses batches
        self.heard = lambda _payload: None
        self._packet = 0

    def start(self):
        self.connect()

    def connect(self):
        self.up = True
        self.session += 1
        self.notices.put(Connected(self.session))

    def disconnect(self):
        self.up = False
        self.notices.put(Disconnected())

    def publish(self, topic, payload, *, retain, session):
        if not self.up or session != self.session:
            return None
        self._packet += 1
        self.sent.append((topic, payload))
        if not self.silent:
            self.notices.put(Acknowledged(self._packet, self.answer if topic.endswith("/batch") else ""))
        return self._packet

    def deliver(self, topic, payload, *, retained=False):
        if topic.endswith("/command"):
            self.heard(payload)
        self.notices.put(Incoming(topic, payload, session=self.session, retained=retained))

    def stop(self):
        self.up = False

    def batches(self):
        return [payload for topic, payload in self.sent if topic.endswith("/batch")]


class AnsweringLink(FakeLink):
    """A broker that retains a receipt, and a ledger behind it that takes every batch."""

    def __init__(self, device, backend, network, server_ms):
        super().__init__()
        self.device, self.backend, self.network, self.server_ms = device, backend, network, server_ms
        self.next_seq, self.head = 0, network_digest(network)

    def connect(self):
        super().connect()
        self._receipt(retained=True)

    def publish(self, topic, payload, *, retain, session):
        ticket = super().publish(topic, payload, retain=retain, session=session)
        if ticket is not None and topic == device_topic(self.device, "batch"):
            if parse_batch(payload).batch.seq == self.next_seq:
                self.next_seq, self.head = self.next_seq + 1, hashlib.sha256(payload).digest()
            self._receipt()
        return ticket

    def _receipt(self, *, retained=False):
        receipt = Receipt(self.device, self.next_seq, self.head, self.server_ms(), 0x1F100000)
        message = sign_receipt(receipt, self.backend, self.network)
        self.deliver(device_topic(self.device, "receipt"), message, retained=retained)
