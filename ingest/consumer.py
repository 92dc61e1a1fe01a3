"""The consumer: groups of messages, one ledger transaction each, then acknowledgements and receipts (P-ING-5)."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import paho.mqtt.client as mqtt
from prometheus_client import CollectorRegistry, Counter, Gauge
from sqlalchemy import Engine

from ingest.beacons import BeaconIssuer
from ingest.config import BrokerSettings
from ingest.intake import Intake, receipt_for
from ingest.mirror import mirror_devices
from maxgreen.chain.deployment import Deployment
from maxgreen.chain.registry import read_systems
from maxgreen.clock import Clock
from maxgreen.errors import Retryable
from maxgreen.ledger.book import Book
from maxgreen.mqtt import Connected, Connection, Denied, Disconnected, Incoming, Notice
from maxgreen.protocol.backend import Beacon, sign_receipt
from maxgreen.protocol.identity import BEACON_TOPIC, ROOT, device_topic
from maxgreen.protocol.keys import Signer

_LOG: Final = logging.getLogger(__name__)
GROUP: Final = 576  # whole rounds of every x86-64 scrypt kernel
LINGER_S: Final = 0.02
QUEUE: Final = 4_096  # then the connection is not read on
_IN_FLIGHT: Final = 1_000  # receipts that the broker has not answered
_WAITING: Final = 10_000
_POLL_S: Final = 0.05
_MAX_RETRY_S: Final = 30
_COMMANDS_EVERY_S: Final = 1.0


class Broker(Protocol):
    """The ingest side of a broker."""

    deliveries: "queue.Queue[Incoming]"

    def start(self) -> None:
        """Begin to connect, and reconnect for ever."""
        ...

    def acknowledge(self, deliveries: Sequence[Incoming]) -> None:
        """Tell the broker that the ledger has messages."""
        ...

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> bool:
        """Send a message at QoS 1; False when it can't go now."""
        ...

    def stop(self) -> None:
        """Close the connection."""
        ...


class MqttBroker:
    """The one owner of ingest's socket, with manual acknowledgement and a persistent session."""

    def __init__(
        self, settings: BrokerSettings, on_connect: Callable[[], None], is_up: Callable[[bool], None] = lambda _up: None
    ) -> None:
        """`on_connect` is called after each connection, `is_up` when it comes and goes."""
        self.deliveries: queue.Queue[Incoming] = queue.Queue()
        self.connected = threading.Event()
        self.denied = ""  # what the broker does not let us listen to
        self._greet = on_connect
        self._is_up = is_up
        self._connection = Connection(
            settings,
            settings.client_id,
            sink=self._take,
            has_room=lambda: self.deliveries.qsize() < QUEUE,
            subscriptions=[(f"{ROOT}/+/+/batch", 1)],
            versions=(mqtt.MQTTv311,),
            manual_ack=True,
            in_flight=_IN_FLIGHT,
            waiting=_WAITING,
            max_retry_s=_MAX_RETRY_S,
        )

    def start(self) -> None:
        """Begin to connect, and reconnect for ever."""
        self._connection.start()

    def acknowledge(self, deliveries: Sequence[Incoming]) -> None:
        """Tell the broker that the ledger has messages."""
        self._connection.acknowledge(deliveries)

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> bool:
        """Send a message at QoS 1; False when it can't go now."""
        return self._connection.publish(topic, payload, retain=retain) is not None

    def stop(self) -> None:
        """Close the connection."""
        self._connection.stop()

    def _take(self, notice: Notice) -> None:
        match notice:
            case Incoming():
                self.deliveries.put(notice)
            case Connected():
                self.connected.set()
                self._is_up(True)
                self._greet()
            case Disconnected():
                self.denied = ""
                self.connected.clear()
                self._is_up(False)
            case Denied(topic, reason):
                self.denied = f"{topic}: {reason}"
            case _:
                pass  # a receipt that the broker has; devices say when it does not reach them


@dataclass(slots=True)
class Metrics:
    """Prometheus metrics of the service."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    batches: Counter = field(init=False)
    transactions: Counter = field(init=False)
    connected: Gauge = field(init=False)
    last_commit: Gauge = field(init=False)

    def __post_init__(self) -> None:
        self.batches = Counter(
            "maxgreen_ingest_batches", "Messages judged", ["verdict", "reason"], registry=self.registry
        )
        self.transactions = Counter("maxgreen_ingest_transactions", "Ledger commits", registry=self.registry)
        self.connected = Gauge("maxgreen_ingest_mqtt_connected", "1 with a broker", registry=self.registry)
        self.last_commit = Gauge(
            "maxgreen_ingest_last_commit_timestamp_seconds", "Time of the last commit", registry=self.registry
        )


class Consumer:
    """Owns the ledger's write side: one thread calls `step`."""

    def __init__(
        self,
        engine: Engine,
        broker: Broker,
        deployment: Deployment,
        signer: Signer,
        clock: Clock,
        metrics: Metrics,
        *,
        refresh_s: float,
    ) -> None:
        self._engine = engine
        self._broker = broker
        self._deployment = deployment
        self._network = deployment.network
        self._signer = signer
        self._clock = clock
        self._metrics = metrics
        self._refresh_s = refresh_s
        self._refresh_due = 0.0
        self._issuer = BeaconIssuer(deployment.chain, signer, self._network)
        self._beacons: dict[int, Beacon] = {}
        self._greet = threading.Event()
        self._commands_due = 0.0
        self._group: list[Incoming] = []
        self._command_again = threading.Event()
        self._command_sent = 0  # the ledger's row

    @property
    def alarm(self) -> str | None:
        """What is wrong with beacons, if anything."""
        return self._issuer.alarm

    def greet(self) -> None:
        """Publish the newest beacon and the waiting commands again: a broker may have lost them."""
        self._greet.set()
        self._command_again.set()

    def step(self) -> int:
        """Do what is due; return how many messages were judged."""
        self.keep_house()
        return self.judge_some()

    def keep_house(self) -> None:
        """Look after registry, beacons and commands: the chain may take its time, so a thread of its own calls it."""
        self._refresh()
        self._issue()
        self._command()

    def judge_some(self) -> int:
        """Judge a group of messages; return how many. One that could not be judged now is judged at the next call."""
        self._group = self._group or self._collect()
        if self._group:
            self._judge(self._group)
        group, self._group = self._group, []
        return len(group)

    def _refresh(self) -> None:
        if time.monotonic() < self._refresh_due:
            return
        self._refresh_due = time.monotonic() + self._refresh_s
        try:
            systems = read_systems(self._deployment)  # before the ledger is locked
        except Retryable as error:
            _LOG.warning("registry not read: %s", error)
            return
        with self._engine.begin() as connection:
            mirror_devices(Book(connection), systems)

    def _issue(self) -> None:
        now_s = self._clock.now_ms() // 1000
        if not self._greet.is_set() and not self._issuer.is_due(now_s):
            return
        block = self._issuer.fetch(now_s)  # before the ledger is locked
        with self._engine.begin() as connection:
            book = Book(connection)
            issued = self._issuer.issue(book, now_s, block)
            if issued is None and self._greet.is_set():
                issued = book.newest_beacon()
        if issued is not None and self._broker.publish(BEACON_TOPIC, issued[1], retain=True):
            self._greet.clear()

    def _command(self) -> None:
        """Send the commands that came into the ledger, and after a connection all that have not expired."""
        if time.monotonic() < self._commands_due:
            return
        self._commands_due = time.monotonic() + _COMMANDS_EVERY_S
        if self._command_again.is_set():
            self._command_again.clear()
            self._command_sent = 0
        with self._engine.connect() as connection:
            waiting = Book(connection).commands_to_send(self._clock.now_ms(), after=self._command_sent)
        for row in waiting:
            if not self._broker.publish(device_topic(row.device, "command"), row.message, retain=False):
                return
            self._command_sent = row.id

    def _collect(self) -> list[Incoming]:
        """Return the messages that came, up to a group, waiting a little for more."""
        group: list[Incoming] = []
        try:
            group.append(self._broker.deliveries.get(timeout=_POLL_S))
            deadline = time.monotonic() + LINGER_S
            while len(group) < GROUP:
                group.append(self._broker.deliveries.get(timeout=max(0.0, deadline - time.monotonic())))
        except queue.Empty:
            pass
        return group

    def _judge(self, group: list[Incoming]) -> None:
        now_ms = self._clock.now_ms()
        devices: dict[bytes, None] = {}
        outcomes = []
        with self._engine.begin() as connection:
            book = Book(connection)
            intake = Intake(book, self._network, book.rules(self._network, self._beacons))
            for delivery in group:
                outcome = intake.handle(delivery.topic, delivery.payload, now_ms)
                outcomes.append(outcome)
                if outcome.device is not None:
                    devices[outcome.device] = None
            receipts = []
            for device in devices:
                receipt = receipt_for(book, device, self._network, now_ms)
                message = sign_receipt(receipt, self._signer, self._network)
                book.put_receipt(device, now_ms, message)
                receipts.append((device, message))
        self._broker.acknowledge(group)
        for device, message in receipts:
            self._broker.publish(device_topic(device, "receipt"), message, retain=True)
        for outcome in outcomes:
            self._metrics.batches.labels(outcome.verdict.value, outcome.reason.label).inc()
        self._metrics.transactions.inc()
        self._metrics.last_commit.set(now_ms / 1000)
