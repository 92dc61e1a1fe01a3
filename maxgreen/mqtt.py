"""MQTT clients of agent and ingest: one way to reach the broker."""

import logging
import random
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from pydantic import Field

from maxgreen.settings import Table

KEEPALIVE_S: Final = 60
SESSION_EXPIRY_S: Final = 60 * 86_400  # as persistent_client_expiration in broker_config/mosquitto.conf
_FIRST_RETRY_S: Final = 1.0
_STABLE_S: Final = 300.0
_CLOSE_S: Final = 5.0
_GREETING_S: Final = 10.0
_LOG: Final = logging.getLogger(__name__)


class BrokerTable(Table):
    """The MQTT broker."""

    host: str = Field(default="127.0.0.1", description="host name")
    port: int = Field(default=8883, description="port; 8883 is MQTT over TLS")
    ca: Path | None = Field(default=None, description="certificate authority; empty = no TLS (trials only)")
    certificate: Path | None = Field(default=None, description="this client's TLS certificate; CN = its client id")
    key: Path | None = Field(default=None, description="this client's TLS key, never a signing key (P-ID-1)")


def make_client(
    settings: BrokerTable, client_id: str, *, version: int = mqtt.MQTTv311, manual_ack: bool = False
) -> mqtt.Client:
    """Return a client with a persistent session, not connected yet; OSError when a certificate is not readable."""
    client = mqtt.Client(
        CallbackAPIVersion.VERSION2,
        client_id=client_id,
        clean_session=None if version == mqtt.MQTTv5 else False,
        protocol=MQTTProtocolVersion(version),
        manual_ack=manual_ack,
        reconnect_on_failure=False,
    )
    if settings.ca is None:
        client.username_pw_set(client_id)
        return client
    client.tls_set(
        ca_certs=str(settings.ca),
        certfile=str(settings.certificate) if settings.certificate else None,
        keyfile=str(settings.key) if settings.key else None,
        tls_version=ssl.PROTOCOL_TLS_CLIENT,
    )
    return client


class Connection:
    """Keeps a client connected in a thread of its own.

    Between attempts it waits a random part of a time that doubles from 1 s to `max_retry_s` ("full jitter"), so that a
    fleet does not come back all at once; a connection that held for five minutes begins again at 1 s. A broker that
    closes before it accepted is asked next in the other protocol version, until it has accepted one.
    """

    def __init__(
        self,
        make: Callable[[int], mqtt.Client],
        settings: BrokerTable,
        *,
        max_retry_s: float,
        versions: tuple[int, ...] = (mqtt.MQTTv5, mqtt.MQTTv311),
    ) -> None:
        """`make` returns a client for a protocol version."""
        self._make = make
        self._versions = deque(versions)
        self.client = make(versions[0])
        self._accepted = False
        self._settings = settings
        self._max_retry_s = max_retry_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)

    def start(self) -> None:
        """Begin to connect, and reconnect for ever."""
        self._thread.start()

    def stop(self) -> None:
        """Close the connection and end."""
        self._stopping.set()
        self.client.disconnect()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)

    def accepted(self) -> None:
        """Stay with this protocol version: the broker took it."""
        self._accepted = True

    def _connect(self) -> None:
        if self._versions[0] != mqtt.MQTTv5:
            self.client.connect(self._settings.host, self._settings.port, KEEPALIVE_S)
            return
        # clean_start False at every connection: paho's default wipes the session at each start of the process
        session = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        session.SessionExpiryInterval = SESSION_EXPIRY_S
        self.client.connect(
            self._settings.host, self._settings.port, KEEPALIVE_S, clean_start=False, properties=session
        )

    def _loop(self) -> None:
        """Run the connection until it ends; one that the broker does not greet is ended."""
        impatient = threading.Timer(_GREETING_S, self._give_up, [self.client])
        impatient.daemon = True
        impatient.start()
        try:
            self.client.loop_forever()
        finally:
            impatient.cancel()

    @staticmethod
    def _give_up(client: mqtt.Client) -> None:
        if not client.is_connected():
            client.disconnect()

    def _try_other_version(self) -> None:
        self._versions.rotate(1)
        self.client = self._make(self._versions[0])

    def _run(self) -> None:
        longest_s = _FIRST_RETRY_S
        failure = ""
        while not self._stopping.is_set():
            begun_s = time.monotonic()
            try:
                self._connect()
                failure = ""
                if self._stopping.is_set():  # stopped while it connected
                    self.client.disconnect()
                self._loop()
                if not self._accepted and len(self._versions) > 1 and not self._stopping.is_set():
                    self._try_other_version()
            except (OSError, ValueError) as error:  # ValueError: a host name that can be none
                if str(error) != failure:
                    _LOG.warning("broker %s:%d: %s", self._settings.host, self._settings.port, error)
                failure = str(error)
            if time.monotonic() - begun_s >= _STABLE_S:
                longest_s = _FIRST_RETRY_S
            self._stopping.wait(random.uniform(0, longest_s))
            longest_s = min(2 * longest_s, self._max_retry_s)
