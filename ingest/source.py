"""Where messages come from and answers go: the one owner of ingest's socket."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Protocol

import paho.mqtt.client as mqtt

from ingest.config import BrokerSettings
from maxgreen.mqtt import Connected, Connection, Denied, Disconnected, Incoming, Notice
from maxgreen.protocol.identity import ROOT

QUEUE: Final = 4_096  # messages; then the connection is not read on
QUEUE_BYTES: Final = 16 * 2**20
GROUP_BYTES: Final = 4 * 2**20
_IN_FLIGHT: Final = 1_000  # receipts that the broker has not answered
_WAITING: Final = 10_000
_MAX_RETRY_S: Final = 30


class Source(Protocol):
    """A broker as ingest needs it."""

    def start(self) -> None:
        """Begin to connect, and reconnect for ever."""
        ...

    def receive(self, most: int, wait_s: float, linger_s: float) -> list[Incoming]:
        """Return messages: none after `wait_s` without any, up to `most` within `linger_s` of the first."""
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


class MqttSource:
    """MQTT with manual acknowledgement and a persistent session."""

    def __init__(
        self, settings: BrokerSettings, on_connect: Callable[[], None], is_up: Callable[[bool], None] = lambda _up: None
    ) -> None:
        """`on_connect` is called after each connection, `is_up` when it comes and goes."""
        self.connected = threading.Event()
        self.denied = ""  # what the broker does not let us listen to
        self._deliveries: queue.SimpleQueue[Incoming] = queue.SimpleQueue()
        self._put_bytes = 0  # by the connection's thread
        self._taken_bytes = 0  # by the worker's
        self._greet = on_connect
        self._is_up = is_up
        self._connection = Connection(
            settings,
            settings.client_id,
            sink=self._take,
            has_room=self._has_room,
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

    def receive(self, most: int, wait_s: float, linger_s: float) -> list[Incoming]:
        """Return messages: none after `wait_s` without any, up to `most` within `linger_s` of the first."""
        try:
            group = [self._deliveries.get(timeout=wait_s)]
        except queue.Empty:
            return []
        if self._deliveries.qsize() < min(most, QUEUE // 2):
            time.sleep(linger_s)  # once for all that come meanwhile, and not woken by each
        size = len(group[0].payload)
        with suppress(queue.Empty):
            while len(group) < most and size < GROUP_BYTES:
                group.append(self._deliveries.get_nowait())
                size += len(group[-1].payload)
        self._taken_bytes += size
        return group

    def acknowledge(self, deliveries: Sequence[Incoming]) -> None:
        """Tell the broker that the ledger has messages."""
        self._connection.acknowledge(deliveries)

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> bool:
        """Send a message at QoS 1; False when it can't go now."""
        return self._connection.publish(topic, payload, retain=retain) is not None

    def stop(self) -> None:
        """Close the connection."""
        self._connection.stop()

    def _has_room(self) -> bool:
        return self._deliveries.qsize() < QUEUE and self._put_bytes - self._taken_bytes < QUEUE_BYTES

    def _take(self, notice: Notice) -> None:
        match notice:
            case Incoming():
                self._put_bytes += len(notice.payload)
                self._deliveries.put(notice)
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
