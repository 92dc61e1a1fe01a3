"""Where messages come from and answers go: the one owner of ingest's socket."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Protocol

import paho.mqtt.client as mqtt

from ingest.config import BrokerSettings
from ingest.refusals import LOG, TOPICS, refusal
from maxgreen.mqtt import BACKEND_KEEPALIVE_S, Connected, Connection, Denied, Disconnected, Incoming, Notice
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

    @property
    def alarm(self) -> str | None:
        """What keeps messages from coming, if anything."""
        ...

    def stop(self) -> None:
        """Close the connection."""
        ...


class Inbox:
    """What came and is not judged yet, bounded in messages and bytes; one thread puts, one receives."""

    def __init__(self) -> None:
        self._deliveries: queue.SimpleQueue[Incoming] = queue.SimpleQueue()
        self._put_bytes = 0  # by the connection's thread
        self._taken_bytes = 0  # by the worker's

    def has_room(self) -> bool:
        """Tell whether more may come."""
        return self._deliveries.qsize() < QUEUE and self._put_bytes - self._taken_bytes < QUEUE_BYTES

    def put(self, message: Incoming) -> None:
        """Add a message, whether there is room or not."""
        self._put_bytes += len(message.payload)
        self._deliveries.put(message)

    def drop(self) -> None:
        """Forget what nobody received yet; the connection's thread calls it, as it does `put`."""
        with suppress(queue.Empty):
            while True:
                self._put_bytes -= len(self._deliveries.get_nowait().payload)

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


class MqttSource:
    """MQTT with manual acknowledgement and a persistent session."""

    def __init__(
        self,
        settings: BrokerSettings,
        on_connect: Callable[[], None],
        is_up: Callable[[bool], None] = lambda _up: None,
        on_refusal: Callable[[str], None] = lambda _kind: None,
    ) -> None:
        """`on_connect` is called after each connection, `is_up` when it comes and goes, `on_refusal` by kind."""
        self._inbox = Inbox()
        self._up = threading.Event()
        self._denied = ""  # what the broker does not let us listen to
        self._greet = on_connect
        self._is_up = is_up
        self._on_refusal = on_refusal
        topics = [(f"{ROOT}/+/+/batch", 1), *((topic, 0) for topic in TOPICS)]
        self._connection = connection(settings, self._take, self._inbox.has_room, topics)

    def start(self) -> None:
        """Begin to connect, and reconnect for ever."""
        self._connection.start()

    @property
    def alarm(self) -> str | None:
        """What keeps messages from coming, if anything."""
        if not self._up.is_set():
            return "no connection to the broker"
        return f"the broker does not let us listen to {self._denied}" if self._denied else None

    def receive(self, most: int, wait_s: float, linger_s: float) -> list[Incoming]:
        """Return messages: none after `wait_s` without any, up to `most` within `linger_s` of the first."""
        return self._inbox.receive(most, wait_s, linger_s)

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
            case Incoming(topic, payload) if topic.startswith(LOG):
                kind = refusal(payload)
                if kind is not None:
                    self._on_refusal(kind)
            case Incoming():
                self._inbox.put(notice)
            case Connected():
                self._up.set()
                self._is_up(True)
                self._greet()
            case Disconnected():
                self._inbox.drop()  # the broker sends again what was not acknowledged
                self._denied = ""
                self._up.clear()
                self._is_up(False)
            case Denied(topic, reason) if not topic.startswith(LOG):  # without its log batches come all the same
                self._denied = f"{topic}: {reason}"
            case _:
                pass  # a receipt that the broker has; devices say when it does not reach them


def connection(
    settings: BrokerSettings,
    sink: Callable[[Notice], None],
    has_room: Callable[[], bool] = lambda: True,
    subscriptions: Sequence[tuple[str, int]] = (),
) -> Connection:
    """Return ingest's connection to an MQTT broker."""
    return Connection(
        settings,
        settings.client_id,
        sink=sink,
        has_room=has_room,
        subscriptions=subscriptions,
        versions=(mqtt.MQTTv311,),
        manual_ack=True,
        in_flight=_IN_FLIGHT,
        waiting=_WAITING,
        max_retry_s=_MAX_RETRY_S,
        keepalive_s=BACKEND_KEEPALIVE_S,
    )
