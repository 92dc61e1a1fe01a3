"""Ingest on a ledger without a broker: what a test needs to send, decide and look."""

from ingest.judging import Outcome
from ingest.metrics import Metrics
from ingest.worker import Worker
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import open_engine
from maxgreen.ledger.registry import KnownDevice, put_devices
from maxgreen.mqtt import Incoming
from maxgreen.protocol.backend import decode_receipt
from maxgreen.protocol.cose import parse
from maxgreen.protocol.identity import device_topic
from maxgreen.protocol.keys import MemorySigner
from maxgreen.protocol.reasons import Reason, Verdict
from maxgreen.verify.rules import Decision, Limits
from simulator.lab import EASY, NETWORK, T0_MS, Lab

BACKEND = MemorySigner.from_secret(2)
LATER = T0_MS + 3_600_000
NOBODY = "0x" + 40 * "0"
SYSTEM = {"kind": "miner", "channels": [], "place_deci": None, "since_ms": 0}


def register(engine, *labs, statuses=((0, "active"),)):
    """Let the ledger know devices."""
    with engine.begin() as connection:
        put_devices(
            connection,
            [KnownDevice(lab.record(status=statuses), k, NOBODY, SYSTEM) for k, lab in enumerate(labs, 1)],
        )


def made(url, *labs):
    """Return an engine of a new ledger with devices and easy work."""
    engine = open_engine(url)
    register(engine, *(labs or (Lab(),)))
    with engine.begin() as connection:
        Book(connection).set_limits(0, Limits(pow_nbits_min=EASY))
    return engine


class Wire:
    """The broker side of ingest, in memory."""

    def __init__(self):
        self.waiting, self.acknowledged, self.sent = [], [], []

    def receive(self, most, wait_s, linger_s):
        group, self.waiting = self.waiting[:most], self.waiting[most:]
        return group

    def acknowledge(self, deliveries):
        self.acknowledged.extend(deliveries)

    def publish(self, topic, payload, *, retain):
        self.sent.append((topic, payload, retain))
        return True


class Clock:
    def __init__(self, t_ms=LATER):
        self.t_ms = t_ms

    def now_ms(self):
        return self.t_ms


class Bench:
    """A worker on a ledger, its wire and its clock."""

    def __init__(self, engine, *, signer=BACKEND, network=NETWORK):
        self.engine, self.wire, self.clock, self.metrics = engine, Wire(), Clock(), Metrics()
        self.worker = Worker(engine, self.wire, network, signer, self.clock, self.metrics)

    def put(self, *messages, topic=None):
        self.wire.waiting += [Incoming(topic or topic_of(message), message, qos=1) for message in messages]

    def known(self, lab):
        """Return chains by device, as a worker reads them: this one's."""
        with self.worker._readers.begin() as connection:
            return self.worker._shelf.known(connection, [lab.device])[0]

    def run(self):
        """Judge all that was put, and what is due."""
        while self.worker.step():
            pass
        self.settle()

    def settle(self):
        for _ in range(100):
            self.worker._due_at = 0.0
            self.worker.step()
            if not self.worker._shelf.due(1):
                return
        raise AssertionError("chains stay due")

    def send(self, *messages, received_ms=LATER, topic=None):
        """Judge messages in one group; return what became of the last."""
        self.clock.t_ms = received_ms
        outcomes = []
        judge = self.worker._judge

        def watched(*arguments):
            desk, found = judge(*arguments)
            outcomes.extend(found)  # what is due without a message has none
            return desk, found

        self.worker._judge = watched
        try:
            self.put(*messages, topic=topic)
            self.worker.step()
        finally:
            self.worker._judge = judge
        return outcomes[-1] if outcomes else Outcome(Verdict.REJECTED, Reason.INTERNAL_ERROR)

    def receipt(self, device=None):
        """Return the newest receipt that a device was sent."""
        topic = device_topic(device or Lab().device, "receipt")
        message = [payload for to, payload, retain in self.wire.sent if to == topic and retain][-1]
        return decode_receipt(parse(message).payload)

    def decide(self, action, from_seq, to_seq, *, device=None, at_ms=LATER):
        with self.engine.begin() as connection:
            Book(connection).add_decision(
                Decision(device or Lab().device, from_seq, to_seq, action, "", "operator", at_ms, "test")
            )
        self.settle()


def topic_of(message):
    """Return the topic of a message's own device; of the lab's where it names none."""
    try:
        return device_topic(parse(message).key_id, "batch")
    except Exception:
        return device_topic(Lab().device, "batch")


def rows(engine, device=None):
    with engine.begin() as connection:
        return list(Book(connection).chain_of(device or Lab().device))


def reasons(engine, device=None):
    return [Reason(row.reason) for row in rows(engine, device)]


def kept_evidence(engine):
    with engine.begin() as connection:
        return Book(connection).all_evidence(100_000)
