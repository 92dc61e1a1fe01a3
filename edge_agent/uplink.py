"""MQTT: batches out at QoS 1, receipts, beacons and commands in; nothing is kept in the client's own queue."""

import json
import logging
import queue
import time
from dataclasses import dataclass
from typing import Any, Final, Protocol

import paho.mqtt.client as mqtt
from paho.mqtt.enums import MQTTErrorCode

from edge_agent.config import BrokerSettings, ProtocolName
from edge_agent.spool import Spool
from maxgreen.clock import Clock
from maxgreen.mqtt import Connection, make_client
from maxgreen.protocol.backend import BackendKeys, Beacon, Command, Receipt
from maxgreen.protocol.cose import network_digest
from maxgreen.protocol.identity import BEACON_TOPIC, device_topic
from maxgreen.protocol.reasons import Rejected

_LOG: Final = logging.getLogger(__name__)
_VERSIONS: Final = {
    ProtocolName.AUTO: (mqtt.MQTTv5, mqtt.MQTTv311),
    ProtocolName.MQTT5: (mqtt.MQTTv5,),
    ProtocolName.MQTT311: (mqtt.MQTTv311,),
}
FUTURE_S: Final = 300
_MAX_RETRY_S: Final = 300
_CLOSE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker took us."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The broker is away."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The broker has a message; its ledger may not."""

    packet: int


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message from the broker."""

    topic: str
    payload: bytes


Notice = Connected | Disconnected | Acknowledged | Incoming


class Link(Protocol):
    """A connection to a broker; what happens on it is put into `notices`."""

    notices: "queue.SimpleQueue[Notice]"

    def start(self) -> None:
        """Begin to connect, and reconnect for ever."""
        ...

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> int | None:
        """Hand a QoS 1 message over; return its packet id, or None when not connected."""
        ...

    def stop(self) -> None:
        """Close the connection."""
        ...


class MqttLink:
    """paho-mqtt: MQTT 5, or 3.1.1 where the broker knows no other; a persistent session; paho queues nothing."""

    def __init__(self, settings: BrokerSettings, device: bytes, will: bytes) -> None:
        self._settings = settings
        self._device = device
        self._will = will
        self.notices: queue.SimpleQueue[Notice] = queue.SimpleQueue()
        self._subscriptions = [
            (device_topic(device, "receipt"), 1),
            (device_topic(device, "command"), 1),
            (BEACON_TOPIC, 1),
        ]
        self._connection = Connection(
            self._make_client, settings, max_retry_s=_MAX_RETRY_S, versions=_VERSIONS[settings.protocol]
        )

    def _make_client(self, version: int) -> mqtt.Client:
        client = make_client(self._settings, self._device.hex(), version=version)
        client.max_inflight_messages_set(2 * self._settings.window)
        client.will_set(device_topic(self._device, "status"), self._will, qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        return client

    def start(self) -> None:
        """Begin to connect, and reconnect for ever."""
        self._connection.start()

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> int | None:
        """Hand a QoS 1 message over; return its packet id, or None when not connected."""
        client = self._connection.client
        if not client.is_connected():
            return None  # paho would queue it, without a limit
        result = client.publish(topic, payload, qos=1, retain=retain)
        return result.mid if result.rc == MQTTErrorCode.MQTT_ERR_SUCCESS else None

    def stop(self) -> None:
        """Close the connection."""
        self._connection.stop()

    def _on_connect(self, client: mqtt.Client, _data: Any, _flags: Any, code: Any, _properties: Any) -> None:
        if code.is_failure:
            _LOG.warning("broker refused the connection: %s", code)
            return
        self._connection.accepted()
        client.subscribe(self._subscriptions)
        self.notices.put(Connected())

    def _on_disconnect(self, _client: mqtt.Client, _data: Any, _flags: Any, code: Any, _properties: Any) -> None:
        _LOG.info("broker connection closed: %s", code)
        self.notices.put(Disconnected())

    def _on_publish(self, _client: mqtt.Client, _data: Any, packet: int, _code: Any, _properties: Any) -> None:
        self.notices.put(Acknowledged(packet))

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        self.notices.put(Incoming(message.topic, bytes(message.payload)))


class Uplink:
    """Sends the spool in order and listens to the backend; one thread calls it."""

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
        self._connected = False
        self.sessions = 0  # how often the broker took us
        self._next_to_send = 0
        self._in_flight: set[int] = set()
        self._progress = time.monotonic()
        self._receipt: Receipt | None = None
        self.alarm: str | None = None
        self.dated = True  # whether the clock is synchronised
        self.missing: str | None = None  # an alarm that does not stop sending (P-RCT-2)
        self.beacons: list[Beacon] = []
        self.commands: list[Command] = []
        last = spool.last_receipt()
        if last is not None:
            try:
                self._receipt = keys.open_receipt(last)
            except Rejected as error:  # the backend's key was replaced: the broker retains a newer receipt
                _LOG.warning("the spool's last receipt is not used: %s", error)
            else:
                self._next_to_send = self._receipt.next_seq

    def start(self) -> None:
        """Begin to connect."""
        self._link.start()

    @property
    def receipt(self) -> Receipt | None:
        """The newest receipt."""
        return self._receipt

    @property
    def connected(self) -> bool:
        """Whether the broker is there."""
        return self._connected

    @property
    def delivered(self) -> bool:
        """Whether the ledger has everything that was sealed."""
        return self._receipt is not None and self._receipt.next_seq >= self._spool.tip.next_seq

    def process(self, timeout_s: float = 0) -> None:
        """Handle what came in, then send what may be sent; waits up to `timeout_s` for something to come."""
        try:
            self._handle(self._link.notices.get(timeout=timeout_s) if timeout_s else self._link.notices.get_nowait())
            while True:
                self._handle(self._link.notices.get_nowait())
        except queue.Empty:
            pass
        self._send()

    def publish_json(self, channel: str, value: dict[str, Any]) -> None:
        """Publish a retained plain JSON message for people and Home Assistant."""
        self.publish_retained(device_topic(self._device, channel), value)

    def publish_retained(self, topic: str, value: dict[str, Any]) -> None:
        """Publish retained plain JSON on any topic of this device."""
        self._link.publish(topic, json.dumps(value).encode(), retain=True)

    def stop(self, boot_id: bytes | None) -> None:
        """Say goodbye (a retired key has said it already) and close."""
        if boot_id is not None:
            self.publish_json("status", {"status": "offline", "boot": boot_id.hex()})
        deadline = time.monotonic() + _CLOSE_S
        while self._connected and self._in_flight and time.monotonic() < deadline:
            self.process(0.05)
        self._link.stop()

    def _handle(self, notice: Notice) -> None:
        match notice:
            case Connected():
                self._connected = True
                self.sessions += 1
                self._in_flight.clear()
                self._next_to_send = self._receipt.next_seq if self._receipt else 0
            case Disconnected():
                self._connected = False
            case Acknowledged(packet):
                self._in_flight.discard(packet)
            case Incoming(topic, payload):
                try:
                    self._receive(topic, payload)
                except Rejected as error:
                    _LOG.warning("message on %s dropped: %s", topic, error)

    def _receive(self, topic: str, payload: bytes) -> None:
        if topic == BEACON_TOPIC:
            self.beacons.append(self._keys.open_beacon(payload))
        elif topic == device_topic(self._device, "receipt"):
            self._take_receipt(self._keys.open_receipt(payload), payload)
        elif topic == device_topic(self._device, "command"):
            self.commands.append(self._keys.open_command(payload))

    def _take_receipt(self, receipt: Receipt, message: bytes) -> None:
        """Note how far the ledger is (P-RCT-2), or stop sending when it contradicts the chain (P-RCT-3)."""
        if receipt.device != self._device:
            return
        if self._receipt is not None and receipt.server_ms < self._receipt.server_ms:
            return
        if self.dated and receipt.server_ms > self._clock.now_ms() + FUTURE_S * 1000:
            return
        if not self._agrees(receipt):
            if self.alarm is None:
                _LOG.error("the backend's receipt contradicts this chain at seq %d; sending stops", receipt.next_seq)
            self.alarm = f"receipt for seq {receipt.next_seq} contradicts this device's chain; ask the operator"
            return
        if self._receipt is None or receipt.next_seq != self._receipt.next_seq:
            self._progress = time.monotonic()
        self._receipt = receipt
        self._next_to_send = max(self._next_to_send, receipt.next_seq)
        self._spool.receipted(receipt, message)

    def _agrees(self, receipt: Receipt) -> bool:
        tip = self._spool.tip
        if receipt.next_seq > tip.next_seq:
            return False
        if receipt.next_seq == 0:
            return receipt.head == network_digest(self._network)
        if receipt.next_seq == tip.next_seq:
            return receipt.head == tip.head
        known = self._spool.digest(receipt.next_seq - 1)
        return known is None or receipt.head == known

    def _send(self) -> None:
        if not self._connected or self.alarm is not None:
            return
        expected = self._receipt.next_seq if self._receipt else 0
        stalled = time.monotonic() - self._progress > self._resend_s
        if stalled and self._next_to_send > expected:
            self._next_to_send = expected
            self._progress = time.monotonic()
        oldest = self._spool.oldest_seq()
        if self._next_to_send < oldest:
            self.missing = (
                f"the ledger asks for batch {self._next_to_send}, the spool begins at {oldest}; ask the operator"
            )
            _LOG.error("%s", self.missing)
            self._next_to_send = oldest
        room = self._window - len(self._in_flight)
        if room <= 0 or self._next_to_send >= self._spool.tip.next_seq:
            return
        for seq, message in self._spool.messages(self._next_to_send, room):
            packet = self._link.publish(device_topic(self._device, "batch"), message, retain=False)
            if packet is None:
                return
            self._in_flight.add(packet)
            self._next_to_send = seq + 1


def retained_receipt(link: Link, device: bytes, keys: BackendKeys, wait_s: float) -> Receipt | None:
    """Return the receipt that the broker retains for a device, None when none comes in time."""
    link.start()
    deadline = time.monotonic() + wait_s
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
                if receipt.device == device:
                    return receipt
    finally:
        link.stop()
    return None
