"""Where batches come from, one suite: Mosquitto, Mosquitto with the project's TLS and ACL, NATS alone and in a cluster."""

import asyncio
import shutil
import socket
import subprocess
import threading
import time
from collections import defaultdict
from contextlib import contextmanager

import nats
import paho.mqtt.client as mqtt
import pytest

from ingest.config import BrokerSettings, NatsSettings
from ingest.nats_source import NatsSource
from ingest.shards import PARTS
from ingest.source import QUEUE, MqttSource
from maxgreen.protocol.identity import BEACON_TOPIC, device_topic
from simulator.lab import Lab
from tests.conftest import ROOT, need, served
from tests.edge_agent.soak import TlsBroker
from tests.services import Mosquitto, Nats, running, wait_for

pytestmark = pytest.mark.services
DEVICES = [Lab(secret).device for secret in range(1, 7)]
ALL = frozenset(range(PARTS))


class PlainBroker:
    """Mosquitto as the tests start it, with what it keeps on disk."""

    def __init__(self, folder):
        self.server = Mosquitto(folder, persistence=True)
        self.ports = [self.server.port]

    def start(self):
        self.server.start()

    def stop(self):
        self.server.stop()

    def kill(self):
        self.server.stop()  # Mosquitto saves what it queued only at its end

    def again(self):
        self.server.start()

    def source(self, parts=lambda: ALL):
        return MqttSource(BrokerSettings(port=self.ports[0]), lambda: None)

    def client(self, name):
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, clean_session=False)
        client.max_inflight_messages_set(20)
        client.max_queued_messages_set(0)
        client.reconnect_delay_set(1, 2)
        return client

    def connected(self, name):
        client = self.client(name)
        client.connect("127.0.0.1", self.ports[-1])
        client.loop_start()
        wait_for(client.is_connected, what="a connection")
        return client


class ProjectsBroker(PlainBroker):
    """Mosquitto with the project's own settings: TLS, certificates, ACL."""

    def __init__(self, folder):
        need(shutil.which("openssl"), "openssl is not installed (apt-get install openssl)")
        need(shutil.which("mosquitto") or "/usr/sbin/mosquitto", "mosquitto is not installed")
        self.folder, self.broker = folder, None

    def start(self):
        program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        self.broker = TlsBroker(program, self.folder, DEVICES)
        self.ports, self.certs = [self.broker.port], self.folder / "certs"

    def stop(self):
        if self.broker is not None:
            self.broker.stop()

    kill = stop

    def again(self):
        self.broker.start()

    def source(self, parts=lambda: ALL):
        return MqttSource(BrokerSettings(port=self.ports[0], **self.files("ingest")), lambda: None)

    def files(self, name):
        return {
            "ca": self.certs / "ca.crt", "certificate": self.certs / f"{name}.crt", "key": self.certs / f"{name}.key"
        }  # fmt: skip

    def client(self, name):
        client = PlainBroker.client(self, name)
        files = self.files(name)
        client.tls_set(str(files["ca"]), str(files["certificate"]), str(files["key"]))
        return client


class NatsBroker(PlainBroker):
    """NATS: devices by MQTT, ingest from the stream."""

    nodes = 1

    def __init__(self, folder):
        self.server = Nats(folder, self.nodes)
        self.ports = self.server.ports

    def kill(self):
        self.server.nodes[0].kill()

    def again(self):
        self.server.nodes[0].start()

    def source(self, parts=lambda: ALL):
        others = [f"127.0.0.1:{port}" for port in self.ports[1:]]
        return NatsSource(
            NatsSettings(servers=self.server.servers, ack_wait_s=4),
            BrokerSettings(port=self.ports[0], others=others),
            parts,
            lambda: None,
        )


class ProjectsNats(NatsBroker):
    """One node with the project's own settings: TLS, certificates, users."""

    def __init__(self, folder):
        need(shutil.which("openssl"), "openssl is not installed (apt-get install openssl)")
        super().__init__(folder)
        node, files = self.server.nodes[0], folder / "files"
        shutil.copytree(ROOT / "broker_config", files)
        names = [device.hex() for device in DEVICES]
        make = [files / "make-certs", files / "certs", "127.0.0.1", "ingest", *names]
        subprocess.run(make, check=True, capture_output=True)
        users = subprocess.run([files / "nats-users", *names], check=True, capture_output=True, text=True).stdout
        (files / "users.conf").write_text(users)
        text = (files / "nats.conf").read_text().replace("/etc/nats/maxgreen", str(files))
        text = text.replace("/var/lib/nats/", f"{folder}/store").replace("0.0.0.0:8883", f"127.0.0.1:{node.port}")
        node.config = files / "nats.conf"
        node.config.write_text(text.replace("0.0.0.0:4222", self.server.servers[0].removeprefix("nats://")))
        node.answers = lambda: socket.create_connection(("127.0.0.1", node.port), 1).close() is None
        self.certs = files / "certs"

    files = ProjectsBroker.files
    client = ProjectsBroker.client

    def source(self, parts=lambda: ALL):
        files = self.files("ingest")
        return NatsSource(
            NatsSettings(servers=self.server.servers, ack_wait_s=4, **files),
            BrokerSettings(port=self.ports[0], **files),
            parts,
            lambda: None,
        )


class NatsCluster(NatsBroker):
    """Three nodes, three copies of everything."""

    nodes = 3


BROKERS = [PlainBroker, ProjectsBroker, NatsBroker, ProjectsNats, NatsCluster]


@pytest.fixture(params=BROKERS, ids=["mosquitto", "mosquitto over TLS", "nats", "nats over TLS", "nats cluster"])
def broker(request, tmp_path):
    @contextmanager
    def made():
        with running(request.param(tmp_path)) as one:
            yield one

    with served(made()) as one:
        yield one


@contextmanager
def listening(broker, **options):
    source = broker.source(**options)
    source.start()
    try:
        wait_for(lambda: source.alarm is None, what=f"the broker ({source.alarm})")
        yield source
    finally:
        source.stop()


class Fleet:
    """Devices that number what they send; `lines` is what came of it."""

    def __init__(self, broker):
        self.clients = {device: broker.connected(device.hex()) for device in DEVICES}
        self.sent = 0
        self.waiting = []

    def send(self, count, size=100):
        """Send so many of each device, without waiting for the broker's answers."""
        for _ in range(count):
            for device, client in self.clients.items():
                payload = self.sent.to_bytes(8) + device + bytes(size)
                self.waiting.append(client.publish(device_topic(device, "batch"), payload, qos=1))
            self.sent += 1

    def settle(self):
        """Wait until the broker has everything."""
        for one in self.waiting:
            one.wait_for_publish(120)
        self.waiting.clear()

    def close(self):
        for client in self.clients.values():
            client.disconnect()
            client.loop_stop()


@pytest.fixture
def fleet(broker):
    one = Fleet(broker)
    yield one
    one.close()


def lines_of(numbers):
    """Return what `numbers` returns when each device's line is this one."""
    return {device: list(numbers) for device in DEVICES}


def receive(source, count, most=500, patience_s=120):
    """Return so many messages."""
    found, ends = [], time.monotonic() + patience_s
    while len(found) < count:
        assert time.monotonic() < ends, f"{len(found)} of {count} came; {source.alarm}"
        found += source.receive(most, 0.1, 0.0)
    return found


def numbers(messages):
    """Return the numbers by device, in the order of their arrival, without those that came again."""
    lines = defaultdict(list)
    for message in messages:
        device, number = message.payload[8:24], int.from_bytes(message.payload[:8])
        assert message.topic == device_topic(device, "batch")
        if number not in lines[device]:
            lines[device].append(number)
    return lines


def test_each_devices_messages_come_in_order_and_once_acknowledged_never_again(broker, fleet):
    with listening(broker) as source:
        fleet.send(10)
        first = receive(source, 60)
        assert numbers(first) == lines_of(range(10))
        assert len(first) == 60
        source.acknowledge(first[:40])
        fleet.settle()
        time.sleep(0.5)
    with listening(broker) as source:
        again = receive(source, 20)
        assert {(m.topic, m.payload) for m in again} == {(m.topic, m.payload) for m in first[40:]}
        source.acknowledge(again)
        fleet.send(1)
        assert numbers(receive(source, 6)) == lines_of([10])


def test_what_devices_sent_meanwhile_comes_when_we_are_back_also_when_it_is_much(broker, fleet):
    with listening(broker) as source:
        fleet.send(1)
        source.acknowledge(receive(source, 6))
        fleet.settle()
        time.sleep(0.5)
    count = QUEUE // len(DEVICES) + 200
    fleet.send(count)
    fleet.settle()
    with listening(broker) as source:
        time.sleep(2)
        held = source._inbox._deliveries.qsize()
        assert held <= QUEUE + PARTS * 128
        found = []
        while len({(m.topic, m.payload[:8]) for m in found}) < 6 * count:
            group = receive(source, 1)
            source.acknowledge(group)
            found += group
        assert numbers(found) == lines_of(range(1, count + 1))


def test_a_broker_that_dies_is_waited_for_and_loses_nothing(broker, fleet):
    with listening(broker) as source:
        fleet.send(10)
        found = receive(source, 60)
        source.acknowledge(found[:30])
        fleet.settle()
        broker.kill()
        if len(broker.ports) == 1:
            wait_for(lambda: source.alarm, what="an alarm")
        fleet.send(20)
        broker.again()
        wait_for(lambda: source.alarm is None, what="the broker")
        ends = time.monotonic() + 120
        while numbers(found) != lines_of(range(30)):
            assert time.monotonic() < ends, numbers(found)
            group = source.receive(500, 0.1, 0.0)
            source.acknowledge(group)
            found += group


def test_receipts_are_retained_and_reach_a_device_that_comes_later(broker, fleet):
    device = DEVICES[0]
    topic = device_topic(device, "receipt")
    with listening(broker) as source:
        assert source.publish(topic, b"first", retain=True)
        assert source.publish(topic, b"newest", retain=True)
        assert source.publish(BEACON_TOPIC, b"beacon", retain=True)
        time.sleep(0.5)
    heard = {}
    client = fleet.clients[device]
    client.on_message = lambda _client, _data, message: heard.update({message.topic: (message.payload, message.retain)})
    client.subscribe([(topic, 1), (BEACON_TOPIC, 0)])
    wait_for(lambda: len(heard) == 2, what="what is retained")
    assert heard == {topic: (b"newest", True), BEACON_TOPIC: (b"beacon", True)}


def test_only_batches_come_and_what_is_hostile_in_them_ends_nothing(broker, fleet):
    device, client = DEVICES[0], fleet.clients[DEVICES[0]]
    with listening(broker) as source:
        client.publish(device_topic(device, "state"), b"{}", qos=1, retain=True)
        client.publish(device_topic(device, "status"), b"online", qos=1, retain=True)
        client.publish(device_topic(device, "batch"), b"", qos=1)
        client.publish(device_topic(device, "batch"), bytes(65_000), qos=1)
        client.publish(device_topic(device, "batch"), b"last", qos=1)
        found = receive(source, 3)
        assert [len(message.payload) for message in found] == [0, 65_000, 4]
        source.acknowledge(found)
        assert source.receive(1, 0.5, 0.0) == []


@pytest.mark.parametrize("broker", [ProjectsBroker, ProjectsNats], indirect=True, ids=["mosquitto", "nats"])
def test_no_device_writes_where_another_does(broker, fleet):
    thief, victim = DEVICES[:2]
    with listening(broker) as source:
        fleet.clients[thief].publish(device_topic(victim, "batch"), b"forged", qos=1)
        fleet.clients[thief].publish(device_topic(thief, "receipt"), b"forged", qos=1, retain=True)
        fleet.clients[thief].publish(BEACON_TOPIC, b"forged", qos=1, retain=True)
        fleet.clients[victim].publish(device_topic(victim, "batch"), b"own", qos=1)
        assert [message.payload for message in receive(source, 1)] == [b"own"]
        assert source.receive(1, 0.5, 0.0) == []
    heard = []
    client = fleet.clients[victim]
    client.on_message = lambda _client, _data, message: heard.append(message.payload)
    client.subscribe([(device_topic(thief, "receipt"), 1), (BEACON_TOPIC, 0)])
    time.sleep(1)
    assert heard == []


NATS_ALONE = pytest.mark.parametrize("broker", [NatsBroker], indirect=True, ids=["nats"])


@NATS_ALONE
def test_parts_given_up_under_load_are_pulled_no_more_and_a_busy_source_stops(broker, fleet):
    ours = [ALL]
    load = threading.Event()

    def send():
        while not load.wait(0.01):
            fleet.send(5)

    with listening(broker, parts=lambda: ours[0]) as source:
        sender = threading.Thread(target=send)
        sender.start()
        try:
            source.acknowledge(receive(source, 600))
            for parts in (frozenset(), ALL, frozenset(), ALL, frozenset()):
                ours[0] = parts
                ends = time.monotonic() + 2.5
                while time.monotonic() < ends:
                    source.acknowledge(source.receive(500, 0.05, 0.0))
            while source.receive(500, 0.2, 0.0):
                pass
            assert source.receive(1, 2, 0.0) == []
            ours[0] = ALL
            source.acknowledge(receive(source, 600))
        finally:
            begun = time.monotonic()
            source.stop()
            load.set()
            sender.join()
        assert not source._thread.is_alive(), time.monotonic() - begun


@NATS_ALONE
def test_a_stream_that_is_made_anew_and_a_connection_that_is_closed_are_lived_through(broker, fleet):
    def ask(what):
        async def asked():
            client = await nats.connect(broker.server.servers[0])
            await what(client.jetstream())
            await client.close()

        asyncio.run(asked())

    with listening(broker) as source:
        fleet.send(3)
        old = receive(source, 18)
        fleet.settle()
        ask(lambda stream: stream.purge_stream("$MQTT_msgs"))
        ask(lambda stream: stream.delete_stream("$MQTT_msgs"))
        wait_for(lambda: source.alarm, what="an alarm")
        source.acknowledge(old[:9])
        asyncio.run_coroutine_threadsafe(source._client.close(), source._loop).result(10)
        broker.server.nodes[0].stop()
        broker.again()
        for client in fleet.clients.values():
            wait_for(client.is_connected, what="the devices")
        wait_for(lambda: source.alarm is None, what="the source")
        found = []
        while len(numbers(found)) < len(DEVICES) or min(map(len, numbers(found).values())) < 3:
            fleet.send(1)  # what came before the consumers is not kept
            group = source.receive(500, 0.5, 0.0)
            source.acknowledge(group)
            found += [message for message in group if message.payload not in {m.payload for m in old}]


@pytest.fixture
def narrow(tmp_path, monkeypatch):
    """A plain broker, and a source with room for a few of its messages, whose connection is watched."""
    monkeypatch.setattr("ingest.source.QUEUE_BYTES", 500_000)
    ups = []
    with running(PlainBroker(tmp_path)) as broker:
        source = MqttSource(BrokerSettings(port=broker.ports[0]), lambda: None, ups.append)
        source.start()
        wait_for(lambda: source.alarm is None, what="a connection")
        publisher = broker.connected("publisher")
        for number in range(40):
            message = bytes([number]) * 60_000
            publisher.publish(device_topic(DEVICES[0], "batch"), message, qos=1).wait_for_publish(30)
        publisher.disconnect()
        publisher.loop_stop()
        yield broker, source, ups
        source.stop()


def received(source):
    found = set()
    deadline = time.monotonic() + 60
    while len(found) < 40:
        assert time.monotonic() < deadline, found
        group = source.receive(100, 1.0, 0.0)
        found |= {message.payload[0] for message in group}
        source.acknowledge(group)
    return found


def test_what_comes_again_after_a_connection_is_kept_once(narrow):
    broker, source, ups = narrow
    for number in range(3):
        wait_for(lambda: source._inbox._put_bytes >= 500_000, what="messages")
        other = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "ingest", clean_session=False, manual_ack=True)
        other.connect("127.0.0.1", broker.ports[0])  # of the same name: the broker ends ours
        other.loop_start()
        wait_for(lambda number=number: ups.count(False) > number, what="the end of the connection")
        other.disconnect()
        other.loop_stop()
        wait_for(lambda: ups[-1], what="another connection")
        wait_for(lambda: source._inbox._put_bytes >= 500_000, what="messages")
    assert source._inbox._put_bytes <= 40 * 60_000  # of one connection, however many there were
    assert received(source) == set(range(40))
