"""MQTT clients of agent and ingest: one way to reach the broker."""

import ssl
from pathlib import Path
from typing import Final

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from pydantic import Field

from maxgreen.settings import Table

KEEPALIVE_S: Final = 60
_FIRST_RETRY_S: Final = 1


class BrokerTable(Table):
    """The MQTT broker."""

    host: str = Field(default="127.0.0.1", description="host name")
    port: int = Field(default=8883, description="port; 8883 is MQTT over TLS")
    ca: Path | None = Field(default=None, description="certificate authority; empty = no TLS (trials only)")
    certificate: Path | None = Field(default=None, description="this client's TLS certificate; CN = its client id")
    key: Path | None = Field(default=None, description="this client's TLS key, never a signing key (P-ID-1)")


def make_client(settings: BrokerTable, client_id: str, *, max_retry_s: int, manual_ack: bool = False) -> mqtt.Client:
    """Return an MQTT 3.1.1 client with a persistent session that is not connected yet."""
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=False, manual_ack=manual_ack)
    client.reconnect_delay_set(_FIRST_RETRY_S, max_retry_s)
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


def start(client: mqtt.Client, settings: BrokerTable) -> None:
    """Begin to connect, and reconnect for ever, in the client's own thread."""
    client.connect_async(settings.host, settings.port, KEEPALIVE_S)
    client.loop_start()
