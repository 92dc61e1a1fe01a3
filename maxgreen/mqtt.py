"""MQTT for agent and ingest: one owner of the socket, one way to the broker.

    callers ── publish, acknowledge ──▶ outbox ─▶┐
                                                 ├─ thread "mqtt": poll, then paho's loop_read, loop_write, loop_misc
    callers ◀── sink(notice) ◀───────────────────┘

Nobody but that thread touches the paho client, so no two writers ever meet on a TLS socket.
"""

import logging
import random
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import paho.mqtt.client as mqtt
from cryptography import x509
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from pydantic import Field, field_validator

from maxgreen.mqtt_client import LARGEST_BYTES, Client
from maxgreen.settings import NoPath, Table, missing_file
from maxgreen.values import value

KEEPALIVE_S: Final = 60  # of a device, whose every byte may cost
BACKEND_KEEPALIVE_S: Final = 10  # a broker that hangs is noticed after twice that
SESSION_EXPIRY_S: Final = 60 * 86_400  # as persistent_client_expiration in broker_config/mosquitto.conf
_MOST_UNWRITTEN: Final = 500  # packets that a peer does not read, before nothing more is read from it
_REFUSED: Final = 0x80  # reason codes from here on refuse
_MOST_TOPIC: Final = 65_535  # bytes
_NO_TOPIC: Final = frozenset("+#\0")
_DAY_S: Final = 86_400.0
_FIRST_RETRY_S: Final = 1.0
_GREETED_RETRY_S: Final = 60.0
_CLOSE_S: Final = 2.0  # what is under way may still go out
_GREETING_S: Final = 10.0
_MOST_PORT: Final = 65_535
_POLL_S: Final = 0.5  # keep-alive has to be looked after
_READS: Final = 64  # packets between two looks at what waits to go out
_UNGREETED: Final = 5  # so often a broker that has accepted us once may close before it greets
_LOG: Final = logging.getLogger(__name__)


class BrokerTable(Table):
    """The MQTT broker."""

    host: str = Field(default="127.0.0.1", min_length=1, max_length=255, description="host name")
    port: int = Field(default=8883, ge=1, le=_MOST_PORT, description="port; 8883 is MQTT over TLS")
    others: list[str] = Field(default=[], description="more addresses of this broker, HOST:PORT, tried in turn")
    ca: NoPath = Field(default=None, description="certificate authority; empty = no TLS (trials only)")
    certificate: NoPath = Field(default=None, description="this client's TLS certificate; CN = its client id")
    key: NoPath = Field(default=None, description="this client's TLS key, never a signing key (P-ID-1)")

    @field_validator("others")
    @classmethod
    def _check_others(cls, others: list[str]) -> list[str]:
        for other in others:
            host, _, port = other.rpartition(":")
            if not host or not port.isdecimal() or not 1 <= int(port) <= _MOST_PORT:
                raise ValueError(f"{other!r}: expected HOST:PORT")
        return others

    def addresses(self) -> list[tuple[str, int]]:
        """Return every address, the first one to try first."""
        parted = [other.rpartition(":") for other in self.others]
        return [(self.host, self.port), *((host.strip("[]"), int(port)) for host, _, port in parted)]

    def faults(self, name: str) -> Iterator[str]:
        """Yield what no connection could use; `name` is the table's."""
        before: list[str] = []
        for key in ("ca", "certificate", "key"):
            before += missing_file(f"{name}.{key}", getattr(self, key))
        yield from before
        if bool(self.certificate) != bool(self.key):
            yield f"{name}: certificate and key go together"
        elif not before and self.ca is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            try:
                context.load_verify_locations(self.ca)
            except (ssl.SSLError, OSError):
                yield f"{name}.ca = {self.ca}: no certificate (PEM)"
            if self.certificate and self.key:
                try:
                    context.load_cert_chain(self.certificate, self.key, password="")
                except (ssl.SSLError, OSError, ValueError):
                    yield f"{name}: certificate {self.certificate} and key {self.key} do not belong together"

    def files(self) -> tuple[Path, ...]:
        """Return the files that a connection reads."""
        return tuple(path for path in (self.ca, self.certificate, self.key) if path is not None)


@value(frozen=True, slots=True)
class Connected:
    """The broker took us, and has answered our subscriptions."""

    session: int = 0


@value(frozen=True, slots=True)
class Disconnected:
    """The broker is away, or does not want us (`refused`); what was not acknowledged may be lost."""

    reason: str = ""
    refused: bool = False


@value(frozen=True, slots=True)
class Denied:
    """The broker does not let us listen to a topic."""

    topic: str
    reason: str


@value(frozen=True, slots=True)
class Acknowledged:
    """The broker answered a message: it has it (its ledger may not), or refuses it for a reason."""

    ticket: int
    refused: str = ""


@value(frozen=True, slots=True)
class Incoming:
    """A message from the broker; `packet`, `qos` and `session` are what `acknowledge` needs.

    `retained`: it is what the broker keeps for the topic, and not one that queued or comes now.
    """

    topic: str
    payload: bytes
    packet: int = 0
    qos: int = 0
    session: int = 0
    retained: bool = False


Notice = Connected | Disconnected | Denied | Acknowledged | Incoming


@value(frozen=True, slots=True)
class _Outgoing:
    ticket: int
    topic: str
    payload: bytes
    retain: bool


class Connection:
    """Keeps a client connected in a thread of its own, for ever.

    Certificates are read at every attempt, so that renewed ones serve without a restart. Between attempts it waits a
    random part of a time that doubles from 1 s to `max_retry_s` ("full jitter"), so that a fleet does not come back all
    at once; a connection that held longer than the next wait may be begins again at 1 s, and after one that was greeted
    no wait is longer than a minute. A broker that closes before it greets is asked next in the other protocol version.
    """

    def __init__(
        self,
        settings: BrokerTable,
        client_id: str,
        *,
        sink: Callable[[Notice], None],
        has_room: Callable[[], bool] = lambda: True,
        subscriptions: Sequence[tuple[str, int]] = (),
        will: tuple[str, bytes] | None = None,
        versions: Sequence[int] = (mqtt.MQTTv5, mqtt.MQTTv311),
        manual_ack: bool = False,
        in_flight: int = 20,
        waiting: int = 100,
        largest: int = LARGEST_BYTES,
        max_retry_s: float = 300,
        keepalive_s: int = KEEPALIVE_S,
    ) -> None:
        """Touch nothing yet.

        `sink` hears of everything, in the thread "mqtt", and must not block; while `has_room` says no, nothing is read
        on. At most `in_flight` messages (or what the broker allows) wait for its answer, `waiting` more for their turn.
        A packet of more than `largest` bytes ends the connection.
        """
        self._settings = settings
        self._addresses = deque(settings.addresses())
        self._client_id = client_id
        self._sink = sink
        self._has_room = has_room
        self._subscriptions = list(subscriptions)
        self._will = will
        self._versions = deque(versions)
        self._wanted_version = versions[0]
        self._fell_back_s = 0.0
        self._manual_ack = manual_ack
        self._most_in_flight = in_flight
        self._most_waiting = waiting
        self._largest = largest
        self._max_retry_s = max_retry_s
        self._keepalive_s = keepalive_s
        self._lock = threading.Lock()
        self._outbox: deque[_Outgoing] = deque()
        self._answers: deque[Incoming] = deque()  # to acknowledge
        self._ticket = 0
        self._session = 0
        self._open = False  # the broker took us: messages may go out
        self._up = False  # and has answered our subscriptions
        self._in_flight: dict[int, int] = {}  # packet id: ticket
        self._limit = in_flight
        self._greeted = False
        self._opened = False
        self._ungreeted = _UNGREETED  # a broker that never accepted us is asked in both versions by turns
        self._refusal = ""
        self._end = ""
        self._heard = 0
        self._said = ""
        self._closing_ends_s = 0.0
        self._stopping = threading.Event()
        self._waker, self._wake_end = socket.socketpair()
        self._waker.setblocking(False)
        self._wake_end.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)

    def start(self) -> None:
        """Begin to connect, and reconnect for ever."""
        self._thread.start()

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, session: int | None = None, urgent: bool = False
    ) -> int | None:
        """Hand a QoS 1 message over; return its ticket, or None when not connected or too many wait.

        `session`: only over that connection, which a notice told of. `urgent`: before all that waits, however much.
        ValueError for what is no topic to publish on (MQTT 5, 4.7): a broker would end the connection for it.
        """
        if not topic or len(topic.encode()) > _MOST_TOPIC or not _NO_TOPIC.isdisjoint(topic):
            raise ValueError(f"{topic!r}: no topic to publish on")
        with self._lock:
            full = len(self._outbox) >= self._most_waiting and not urgent
            if not self._open or full or session not in {None, self._session}:
                return None
            self._ticket += 1
            one = _Outgoing(self._ticket, topic, payload, retain)
            is_first = not self._outbox  # else the connection's thread looks at them anyway
            self._outbox.appendleft(one) if urgent else self._outbox.append(one)
            ticket = self._ticket
        if is_first:
            self._wake()
        return ticket

    def acknowledge(self, messages: Sequence[Incoming]) -> None:
        """Tell the broker that messages are kept, in their order; those of an earlier connection come again."""
        with self._lock:
            self._answers.extend(message for message in messages if message.qos)
        self._wake()

    def stop(self) -> None:
        """Let what is under way go out, for two seconds at most; then close and end."""
        self._stopping.set()
        self._wake()
        if self._thread.is_alive():
            self._thread.join(2 * _CLOSE_S)

    def _wake(self) -> None:
        with suppress(BlockingIOError):  # then it is awake already
            self._wake_end.send(b"\0")

    def _run(self) -> None:
        longest_s = _FIRST_RETRY_S
        while not self._stopping.is_set():
            begun_s = time.monotonic()
            reason = self._connect_once()
            held_s = time.monotonic() - begun_s if self._greeted else 0.0
            if held_s > longest_s:
                longest_s = _FIRST_RETRY_S
            self._down(reason)
            self._addresses.rotate(-1)
            if not self._stopping.is_set():
                self._wait(random.uniform(0, longest_s))
            # a broker that greets and then lets go is not away: a device must not be, for minutes
            longest_s = min(2 * longest_s, self._max_retry_s, _GREETED_RETRY_S if self._greeted else self._max_retry_s)

    def _wait(self, seconds: float) -> None:
        self._stopping.wait(seconds)

    def _connect_once(self) -> str:
        """Connect and serve until the connection ends; return why it did."""
        self._greeted, self._opened, self._refusal, self._end = False, False, "", ""
        self._session += 1
        if self._versions[0] != self._wanted_version and time.monotonic() - self._fell_back_s > _DAY_S:
            self._versions.rotate(1)  # a broker may have learned the other version
        version = self._versions[0]
        try:
            if expired := _expired(self._settings.certificate):
                self._refusal = expired
                return expired
            client = self._make_client(version)
            self._dial(client, version)
            self._serve(client)
        except Exception as error:  # noqa: BLE001 - any bytes of a broker end a connection, never this thread
            return str(getattr(error, "strerror", None) or error) or type(error).__name__
        finally:
            if self._opened:
                self._note_greeting()
        reason = self._refusal or self._end or "the broker closed the connection"
        if self._opened and not self._greeted and self._settings.certificate is not None:
            reason = self._refusal = f"{reason}, before it greeted: does it refuse this certificate?"
        return reason

    def _note_greeting(self) -> None:
        """Ask in the other protocol version next, where the broker does not answer this one."""
        self._ungreeted = 0 if self._greeted else self._ungreeted + 1
        # over TLS it may be the certificate that it does not take: then the version is not to blame
        if self._ungreeted > (_UNGREETED if self._settings.ca is None else 2 * _UNGREETED + 1):
            self._versions.rotate(1)
            self._fell_back_s = time.monotonic()

    def _make_client(self, version: int) -> Client:
        settings = self._settings
        client = Client(
            self._on_message,
            self._on_answer,
            self._largest,
            callback_api_version=CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            clean_session=None if version == mqtt.MQTTv5 else False,
            protocol=MQTTProtocolVersion(version),
            manual_ack=self._manual_ack,
            reconnect_on_failure=False,
        )
        client.enable_logger(_LastError(self._note_error))  # type: ignore[arg-type]
        client.max_inflight_messages_set(0)  # the outbox holds the limit
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        if self._will is not None:
            client.will_set(*self._will, qos=1, retain=True)
        if settings.ca is None:
            client.username_pw_set(self._client_id)
            return client
        client.tls_set(
            ca_certs=str(settings.ca),
            certfile=str(settings.certificate) if settings.certificate else None,
            keyfile=str(settings.key) if settings.key else None,
            tls_version=ssl.PROTOCOL_TLS_CLIENT,
        )
        return client

    def _dial(self, client: mqtt.Client, version: int) -> None:
        options: dict[str, Any] = {}
        if version == mqtt.MQTTv5:
            # clean_start False at every connection: paho's default wipes the session at each start of the process
            session = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            session.SessionExpiryInterval = SESSION_EXPIRY_S
            session.MaximumPacketSize = self._largest
            options = {"clean_start": False, "properties": session}
        client.connect(*self._addresses[0], self._keepalive_s, **options)
        self._opened = True

    def _serve(self, client: Client) -> None:
        """Read and write until the connection ends."""
        poller = select.poll()
        poller.register(self._waker, select.POLLIN)
        greeting_ends_s = time.monotonic() + _GREETING_S
        while (sock := client.socket()) is not None:
            if not self._up and time.monotonic() > greeting_ends_s:
                self._end = f"no answer within {_GREETING_S:g} s"
                break
            if self._stopping.is_set() and self._is_closed(client):
                break
            self._pump(client)
            if client.want_write():
                client.loop_write()
            if client.socket() is not None:
                self._turn(client, sock, poller)
        if (left := client.socket()) is not None:
            left.close()

    def _turn(self, client: Client, sock: Any, poller: select.poll) -> None:
        """Wait for the socket or for somebody who publishes; read, keep the connection alive."""
        # before the broker has answered everything is read: what it sends by then is little
        room = (not self._up or self._has_room()) and len(client._out_packet) < _MOST_UNWRITTEN  # noqa: SLF001
        handle = sock.fileno()
        poller.register(handle, (select.POLLIN if room else 0) | (select.POLLOUT if client.want_write() else 0))
        pending = room and (client.has_read_ahead or (isinstance(sock, ssl.SSLSocket) and sock.pending() > 0))
        patience_s = 0.0 if pending else _POLL_S / 10 if self._stopping.is_set() else _POLL_S
        ready = dict(poller.poll(1000 * patience_s))
        poller.unregister(handle)
        if self._waker.fileno() in ready:
            self._waker.recv(4_096)
        if pending or ready.get(handle, 0) & ~select.POLLOUT:
            self._read(client)
        if room:
            client.loop_misc()
        else:
            client.ping_unheard()

    def _is_closed(self, client: Client) -> bool:
        """Say goodbye as soon as everything is out; without one after two seconds, so that the will goes out."""
        self._closing_ends_s = self._closing_ends_s or time.monotonic() + _CLOSE_S
        if self._outbox or self._in_flight or self._answers:
            return time.monotonic() > self._closing_ends_s
        if passing := [topic for topic, qos in self._subscriptions if qos == 0]:
            client.unsubscribe(passing)  # nothing of it is kept for who is away, and the next one may not know it
        client.disconnect()
        client.loop_write()
        return True

    def _read(self, client: Client) -> None:
        for _ in range(_READS):
            before = self._heard
            client.loop_read()
            if client._in_messages:  # noqa: SLF001 - nothing here listens at QoS 2, which paho keeps without a limit
                raise ConnectionError("the broker sends at QoS 2")
            if client.socket() is None or self._heard == before or (self._up and not self._has_room()):
                break

    def _pump(self, client: Client) -> None:
        """Hand paho what may go out now."""
        with self._lock:
            answers = [message for message in self._answers if message.session == self._session]
            self._answers.clear()
            free = self._limit - len(self._in_flight) if self._open else 0
            outgoing = [self._outbox.popleft() for _ in range(min(free, len(self._outbox)))]
        client.acknowledge(message.packet for message in answers)
        for one in outgoing:
            number = client.send(one.topic.encode(), one.payload, retain=one.retain)
            if number in self._in_flight:
                raise ConnectionError("the broker has not answered a message for 65,535 others")
            self._in_flight[number] = one.ticket

    def _down(self, reason: str) -> None:
        with self._lock:
            self._open = self._up = False
            self._outbox.clear()
            self._answers.clear()
            self._in_flight.clear()
        if reason != self._said and not self._stopping.is_set():
            _LOG.warning("broker %s:%d: %s", *self._addresses[0], reason)
            self._said = reason
        self._sink(Disconnected(reason, bool(self._refusal)))

    def _on_connect(self, client: mqtt.Client, _data: Any, _flags: Any, code: Any, properties: Any) -> None:
        self._heard += 1
        if code.is_failure:
            self._refusal = f"it refused the connection: {code}"
            # a broker that does not know this version says so here (MQTT 5, 3.2.2.2), and others close
            self._greeted = "protocol version" not in str(code).lower()
            return
        self._greeted = True
        self._open = True
        self._limit = min(self._most_in_flight, getattr(properties, "ReceiveMaximum", 65_535))
        if self._subscriptions:
            client.subscribe(self._subscriptions)
        else:
            self._accept()

    def _on_subscribe(self, _client: mqtt.Client, _data: Any, _packet: int, codes: Any, _properties: Any) -> None:
        self._heard += 1
        for (topic, _), code in zip(self._subscriptions, codes, strict=False):
            if code.is_failure:
                _LOG.error("broker: it does not let us listen to %s: %s", topic, code)
                self._sink(Denied(topic, str(code)))
        self._accept()

    def _accept(self) -> None:
        with self._lock:
            self._up = True
        _LOG.info("broker %s:%d: connected", *self._addresses[0])
        self._said = ""
        self._sink(Connected(self._session))

    def _on_answer(self, packet: int, code: int) -> None:
        self._heard += 1
        ticket = self._in_flight.pop(packet, None)
        if ticket is not None:
            self._sink(Acknowledged(ticket, _refusal(code)))

    def _on_message(self, topic: bytes, payload: bytes, packet: int, qos: int, retained: bool) -> None:
        self._heard += 1
        name = topic.decode(errors="replace")  # of what is no UTF-8, whoever judges it says that it is no topic of ours
        self._sink(Incoming(name, payload, packet, qos, self._session, retained))

    def _on_disconnect(self, _client: mqtt.Client, _data: Any, _flags: Any, code: Any, _properties: Any) -> None:
        # paho has one word for all that a socket can do
        self._end = self._end or ("the connection was lost" if str(code) == "Unspecified error" else str(code))

    def _note_error(self, text: str) -> None:
        self._end = text


def _refusal(code: int) -> str:
    """Return what a reason code of PUBACK says, empty where it refuses nothing (MQTT 5, 3.4.2.1)."""
    if code < _REFUSED:
        return ""
    try:
        return str(ReasonCode(PacketTypes.PUBACK, identifier=code))
    except (KeyError, ValueError):  # none of MQTT's, or none of this packet
        return f"reason code {code}"


def _expired(certificate: Path | None) -> str:
    """Return that a certificate is over, empty when it is not, or can't be read."""
    if certificate is None:
        return ""
    try:
        ends = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    except (OSError, ValueError):
        return ""  # whoever loads it says what is wrong
    return f"this certificate ({certificate}) is over since {ends:%Y-%m-%d}" if ends < datetime.now(UTC) else ""


class _LastError:
    """What paho asks of a logger; it says there, and nowhere else, what the socket's error was."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note

    def log(self, level: int, text: str, *arguments: object) -> None:
        if level >= logging.ERROR:
            self._note(text % arguments)
