"""The agent's way to its broker: MQTT 5, or 3.1.1 where the broker knows no other; a persistent session."""

import queue
from collections.abc import Callable
from typing import Final, Protocol

import paho.mqtt.client as mqtt

from edge_agent.config import BrokerSettings, ProtocolName
from edge_agent.renewal import take_certificate
from maxgreen.mqtt import Connection, Incoming, Notice
from maxgreen.protocol.identity import BEACON_TOPIC, device_topic

_VERSIONS: Final = {
    ProtocolName.AUTO: (mqtt.MQTTv5, mqtt.MQTTv311),
    ProtocolName.MQTT5: (mqtt.MQTTv5,),
    ProtocolName.MQTT311: (mqtt.MQTTv311,),
}
_MOST_NOTICES: Final = 1_000  # then nothing is read on
_LARGEST_BYTES: Final = 16 * 1024  # receipts, beacons and commands are far smaller


class Link(Protocol):
    """A connection to a broker; what happens on it is put into `notices`."""

    notices: "queue.SimpleQueue[Notice | None]"  # None wakes who waits for one
    heard: Callable[[bytes], None]  # hears each command at once, whatever the reader of `notices` does

    def start(self) -> None:
        """Begin to connect, and reconnect for ever."""
        ...

    def publish(self, topic: str, payload: bytes, *, retain: bool, session: int) -> int | None:
        """Hand a QoS 1 message over for a connection; return its ticket, or None when it can't be taken now.

        What is retained goes first, however much waits.
        """
        ...

    def stop(self) -> None:
        """Let what is under way go out, and close the connection."""
        ...


class MqttLink:
    """paho-mqtt behind the one owner of its socket."""

    def __init__(self, settings: BrokerSettings, device: bytes, will: bytes) -> None:
        self.notices: queue.SimpleQueue[Notice | None] = queue.SimpleQueue()
        self.heard: Callable[[bytes], None] = lambda _payload: None
        self._settings, self._device = settings, device
        self._command_topic = device_topic(device, "command")
        self._certificate_topic = device_topic(device, "certificate")
        self._connection = Connection(
            settings,
            device.hex(),
            sink=self._take,
            has_room=lambda: self.notices.qsize() < _MOST_NOTICES,
            # beacons at QoS 0: the newest is retained, and none queues for a device that is away
            subscriptions=[
                (device_topic(device, "receipt"), 1),
                (self._command_topic, 1),
                (self._certificate_topic, 1),
                (BEACON_TOPIC, 0),
            ],
            will=(device_topic(device, "status"), will),
            versions=_VERSIONS[settings.protocol],
            in_flight=settings.window,
            waiting=2 * settings.window,
            largest=_LARGEST_BYTES,
        )

    def start(self) -> None:
        """Begin to connect, and reconnect for ever."""
        self._connection.start()

    def publish(self, topic: str, payload: bytes, *, retain: bool, session: int) -> int | None:
        """Hand a QoS 1 message over for a connection; return its ticket, or None when it can't be taken now."""
        return self._connection.publish(topic, payload, retain=retain, session=session, urgent=retain)

    def stop(self) -> None:
        """Let what is under way go out, and close the connection."""
        self._connection.stop()

    def _take(self, notice: Notice) -> None:
        if isinstance(notice, Incoming) and notice.topic == self._certificate_topic:
            take_certificate(self._settings, self._device, notice.payload)
            return
        self.notices.put(notice)
        if isinstance(notice, Incoming) and notice.topic == self._command_topic:
            self.heard(notice.payload)
