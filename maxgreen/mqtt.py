"""MQTT clients of agent and ingest: one way to reach the broker."""

import logging
import random
import ssl
import threading
import time
from pathlib import Path
from typing import Final

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from pydantic import Field

from maxgreen.settings import Table

KEEPALIVE_S: Final = 60
_FIRST_RETRY_S: Final = 1.0
_STABLE_S: Final = 300.0
_CLOSE_S: Final = 5.0
_LOG: Final = logging.getLogger(__name__)


class BrokerTable(Table):
    """The MQTT broker."""

    host: str = Field(default="127.0.0.1", description="host name")
    port: int = Field(default=8883, description="port; 8883 is MQTT over TLS")
    ca: Path | None = Field(default=None, description="certificate authority; empty = no TLS (trials only)")
    certificate: Path | None = Field(default=None, description="this client's TLS certificate; CN = its client id")
    key: Path | None = Field(default=None, description="this client's TLS key, never a signing key (P-ID-1)")


def make_client(settings: BrokerTable, client_id: str, *, manual_ack: bool = False) -> mqtt.Client:
    """Return an MQTT 3.1.1 client with a persistent session that is not connected yet."""
    client = mqtt.Client(
        CallbackAPIVersion.VERSION2,
        client_id=client_id,
        clean_session=False,
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
    fleet does not come back all at once; a connection that held for five minutes begins again at 1 s.
    """

    def __init__(self, client: mqtt.Client, settings: BrokerTable, *, max_retry_s: float) -> None:
        self._client = client
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
        self._client.disconnect()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        longest_s = _FIRST_RETRY_S
        failure = ""
        while not self._stopping.is_set():
            begun_s = time.monotonic()
            try:
                self._client.connect(self._settings.host, self._settings.port, KEEPALIVE_S)
                failure = ""
                if self._stopping.is_set():  # stopped while it connected
                    self._client.disconnect()
                self._client.loop_forever()
            except (OSError, ValueError) as error:  # ValueError: a host name that can be none
                if str(error) != failure:
                    _LOG.warning("broker %s:%d: %s", self._settings.host, self._settings.port, error)
                failure = str(error)
            if time.monotonic() - begun_s >= _STABLE_S:
                longest_s = _FIRST_RETRY_S
            self._stopping.wait(random.uniform(0, longest_s))
            longest_s = min(2 * longest_s, self._max_retry_s)
