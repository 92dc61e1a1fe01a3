"""Batches from the JetStream of a NATS cluster, to which devices connect by MQTT.

    devices ── MQTT ──▶ NATS ── stream of MQTT messages ── a pull consumer for each part ──▶ thread "nats" ─▶ Inbox
    devices ◀── MQTT ── NATS ◀── retained receipts, beacons, commands: an MQTT connection without subscriptions

A consumer keeps the order of its devices; only who holds a part's lease pulls (ingest.shards). Messages are
acknowledged one by one when the ledger has them; those that are not come again after `ack_wait_s`, as duplicates.
"""

import asyncio
import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Final

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from ingest.config import BrokerSettings, NatsSettings
from ingest.shards import PARTS, shards_of
from ingest.source import Inbox, connection
from maxgreen.mqtt import Connected, Disconnected, Incoming, Notice
from maxgreen.protocol.identity import ROOT

STREAM: Final = "$MQTT_msgs"  # where the server keeps MQTT messages of QoS 1
_PREFIX: Final = "$MQTT.msgs."
_FETCH: Final = 32  # of each part at once: all of them together are less than a server lets wait for a client, 64 MiB
_FETCH_S: Final = 5.0
_FULL_S: Final = 0.02
_LOOK_S: Final = 1.0
_PENDING_BYTES: Final = 4 * 2**20  # that the client holds of one consumer
_ACK_PENDING: Final = 4_096
_STOP_S: Final = 5.0
_ANEW_S: Final = 60.0  # without a connection, before one is made anew
_LOG: Final = logging.getLogger(__name__)


class NatsSource:
    """JetStream's pull consumers, and MQTT for what goes to devices."""

    def __init__(
        self,
        settings: NatsSettings,
        broker: BrokerSettings,
        parts: Callable[[], frozenset[int]],
        on_connect: Callable[[], None],
        is_up: Callable[[bool], None] = lambda _up: None,
    ) -> None:
        """`parts` is asked each second which parts are ours; `on_connect` and `is_up` are of the MQTT connection."""
        self._settings = settings
        self._parts = parts
        self._greet = on_connect
        self._is_up = is_up
        self._inbox = Inbox()
        self._held: dict[int, Msg] = {}  # not acknowledged, by our own number; the thread's own
        self._numbers: dict[tuple[int, datetime], int] = {}  # by their place in the stream, which may be made anew
        self._number = 0
        self._mqtt_up = threading.Event()
        self._trouble = "no connection to NATS"
        self._troubles: dict[int, str] = {}  # of parts
        self._unread = frozenset(range(PARTS))  # of our parts; before we know which they are, of all
        self._stopping = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._client: Client | None = None
        self._connection = connection(broker, self._take)
        self._thread = threading.Thread(target=self._run, name="nats", daemon=True)

    def start(self) -> None:
        """Begin to connect, and reconnect for ever."""
        self._connection.start()
        self._thread.start()

    @property
    def alarm(self) -> str | None:
        """What keeps messages from coming, if anything."""
        if trouble := self._trouble or next(iter(self._troubles.copy().values()), ""):
            return trouble
        if self._unread:
            return f"NATS: parts {sorted(self._unread)} are not read yet"
        return None if self._mqtt_up.is_set() else "no connection to the broker's MQTT"

    def receive(self, most: int, wait_s: float, linger_s: float) -> list[Incoming]:
        """Return messages: none after `wait_s` without any, up to `most` within `linger_s` of the first."""
        return self._inbox.receive(most, wait_s, linger_s)

    def acknowledge(self, deliveries: Sequence[Incoming]) -> None:
        """Tell the stream that the ledger has messages."""
        numbers = [message.packet for message in deliveries]
        with suppress(RuntimeError):  # the loop has ended: they come again
            asyncio.run_coroutine_threadsafe(self._answer(numbers, b"+ACK"), self._loop)

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> bool:
        """Send a message by MQTT at QoS 1; False when it can't go now."""
        return self._connection.publish(topic, payload, retain=retain) is not None

    def stop(self) -> None:
        """Give back what is not judged, and close both connections."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)
        self._connection.stop()

    def _take(self, notice: Notice) -> None:
        match notice:
            case Connected():
                self._mqtt_up.set()
                self._is_up(True)
                self._greet()
            case Disconnected():
                self._mqtt_up.clear()
                self._is_up(False)
            case _:
                pass

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        while not self._stopping.is_set():
            try:
                self._loop.run_until_complete(self._serve())
            except (OSError, NatsError) as error:
                self._trouble = _text(error)
                _LOG.warning("%s", self._trouble)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again
                _LOG.exception("NATS")
                self._trouble = _text(error)
            self._stopping.wait(_LOOK_S)
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    async def _serve(self) -> None:
        connecting = asyncio.ensure_future(self._connect())
        while not connecting.done() and not self._stopping.is_set():
            await asyncio.wait([connecting], timeout=_LOOK_S)
        if not connecting.done():
            connecting.cancel()
            return
        client = self._client = connecting.result()
        pulling: dict[int, asyncio.Task[None]] = {}
        try:
            await self._follow_parts(client, pulling)
        finally:
            for task in pulling.values():
                task.cancel()
            if pulling:
                await asyncio.wait(pulling.values(), timeout=_STOP_S / 2)
            with suppress(NatsError, asyncio.TimeoutError):
                await self._answer(list(self._held), b"-NAK")
                await client.flush(2)
            await client.close()

    async def _follow_parts(self, client: Client, pulling: dict[int, "asyncio.Task[None]"]) -> None:
        """Pull the parts that are ours, until the end; ConnectionError when another connection must be made."""
        connected_s = time.monotonic()
        while not self._stopping.is_set():
            if client.is_connected:
                connected_s = time.monotonic()
            # closed when the cluster did not know us for a while; a certificate may have been renewed
            if client.is_closed or time.monotonic() > connected_s + _ANEW_S:
                raise ConnectionError("no connection")
            ours = await asyncio.to_thread(self._parts)
            self._unread = (self._unread | (ours - pulling.keys())) & ours
            for part in pulling.keys() - ours:
                pulling.pop(part).cancel()
                self._troubles.pop(part, None)
            for part in ours - pulling.keys():
                pulling[part] = asyncio.create_task(self._pull(client.jetstream(), part))
            await asyncio.to_thread(self._stopping.wait, _LOOK_S)

    async def _connect(self) -> Client:
        """Return a client that reconnects for ever; certificates are read now."""
        settings = self._settings
        tls = None
        if settings.ca is not None:
            tls = ssl.create_default_context(cafile=str(settings.ca))
            if settings.certificate is not None:
                tls.load_cert_chain(str(settings.certificate), str(settings.key) if settings.key else None)
        while True:
            try:
                connecting = nats.connect(
                    servers=settings.servers,
                    name="maxgreen ingest",
                    tls=tls,
                    user_credentials=str(settings.credentials) if settings.credentials else None,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=1,
                    ping_interval=10,
                    error_cb=self._note_error,
                    disconnected_cb=self._note_down,
                    reconnected_cb=self._note_up,
                )
                client = await asyncio.wait_for(connecting, _ANEW_S)
            except (TimeoutError, NatsError, OSError) as error:
                await self._note_error(error)
                await asyncio.sleep(_LOOK_S)
                continue
            await self._note_up()
            return client

    async def _note_error(self, error: Exception) -> None:
        text = _text(error)
        if self._client is None or not self._client.is_connected:
            if text != self._trouble:
                _LOG.warning("%s", text)
            self._trouble = text

    async def _note_down(self) -> None:
        if not self._stopping.is_set():
            self._trouble = "no connection to NATS"
            _LOG.warning("%s", self._trouble)

    async def _note_up(self) -> None:
        self._trouble = ""
        _LOG.info("NATS: connected")

    async def _pull(self, stream: JetStreamContext, part: int) -> None:
        """Pull a part's messages into the inbox until cancelled, whatever the cluster does."""
        name = f"ingest-{part:02d}"
        waited = False
        while True:
            _end_if_cancelled()
            try:
                await stream.add_consumer(STREAM, self._consumer(name, part))
                if not waited:
                    await self._wait_for_others(stream, name)
                    waited = True
                await self._pull_from(stream, name, part)
            except (TimeoutError, NatsError, OSError) as error:
                self._say(part, error)
                await asyncio.sleep(_LOOK_S)
            except Exception as error:  # noqa: BLE001 - whatever it is, the other parts go on
                _LOG.exception("NATS: part %d", part)
                self._say(part, error)
                await asyncio.sleep(10 * _LOOK_S)

    def _consumer(self, name: str, part: int) -> ConsumerConfig:
        return ConsumerConfig(
            durable_name=name,
            filter_subjects=[f"{_PREFIX}{_subject(shard)}" for shard in shards_of(part)],
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=self._settings.ack_wait_s,
            max_ack_pending=_ACK_PENDING,
            deliver_policy=DeliverPolicy.ALL,
        )

    async def _pull_from(self, stream: JetStreamContext, name: str, part: int) -> None:
        pulled = await stream.pull_subscribe_bind(
            consumer=name, stream=STREAM, pending_bytes_limit=_PENDING_BYTES, pending_msgs_limit=_ACK_PENDING
        )
        self._troubles.pop(part, None)
        self._unread -= {part}
        try:
            while True:
                _end_if_cancelled()
                while not self._inbox.has_room():  # noqa: ASYNC110 - a thread empties it
                    await asyncio.sleep(_FULL_S)
                with suppress(asyncio.TimeoutError):
                    self._put(await pulled.fetch(_FETCH, timeout=_FETCH_S))
        finally:
            with suppress(NatsError, asyncio.TimeoutError):
                await pulled.unsubscribe()

    async def _wait_for_others(self, stream: JetStreamContext, name: str) -> None:
        """Wait for what another service has under way, so that a device's messages keep their order."""
        for _ in range(round(self._settings.ack_wait_s / _LOOK_S) + 1):
            _end_if_cancelled()
            if not (await stream.consumer_info(STREAM, name)).num_ack_pending:
                return
            await asyncio.sleep(_LOOK_S)

    def _put(self, messages: Iterable[Msg]) -> None:
        for message in messages:
            place = _place(message)
            number = self._numbers.get(place)
            if number is not None:  # it came again while it waits here
                self._held[number] = message
                continue
            self._number += 1
            self._numbers[place] = self._number
            self._held[self._number] = message
            topic = message.subject.removeprefix(_PREFIX).replace(".", "/")
            self._inbox.put(Incoming(topic, message.data, packet=self._number, qos=1))

    async def _answer(self, numbers: Iterable[int], answer: bytes) -> None:
        messages = [message for number in numbers if (message := self._held.pop(number, None)) is not None]
        for message in messages:
            self._numbers.pop(_place(message), None)
        try:
            for message in messages:
                if self._client is not None:
                    await self._client.publish(message.reply, answer)
        except (NatsError, OSError):
            return  # those that were not answered come again, and are duplicates

    def _say(self, part: int, error: Exception) -> None:
        text = _text(error)
        if text not in self._troubles.values():
            _LOG.warning("%s (part %d)", text, part)
        self._troubles[part] = text


def _text(error: Exception) -> str:
    return f"NATS: {str(error) or type(error).__name__}"


def _place(message: Msg) -> tuple[int, datetime]:
    """Return where a message stands in the stream, and when it came there: a stream that is made anew counts again."""
    return message.metadata.sequence.stream, message.metadata.timestamp


def _end_if_cancelled() -> None:
    """End a task that is cancelled: `wait_for` may forget it, where a message comes in that moment (CPython 3.11)."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _subject(shard: str) -> str:
    return f"{ROOT.replace('/', '.')}.{shard}.*.batch"
