"""What somebody with a device's certificate can do to the broker, as it is configured and started in broker_config."""

import os
import queue
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.subscribeoptions import SubscribeOptions

from ingest.config import BrokerSettings
from ingest.source import MqttSource
from maxgreen.protocol.identity import device_topic
from tests.conftest import ROOT, free_port, need, stop, wait_for

pytestmark = pytest.mark.services
THIEF, VICTIM = "aa" * 16, "bb" * 16
NOT_AUTHORISED = 135


@pytest.fixture(scope="module")
def broker(mosquitto_program):
    """Mosquitto with the files of broker_config, in another folder and at other ports."""
    need(shutil.which("openssl"), "openssl is not installed (apt-get install openssl)")
    with tempfile.TemporaryDirectory(prefix="maxgreen-broker-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copytree(ROOT / "broker_config", folder / "maxgreen")
        (folder / "data").mkdir()
        if os.geteuid() == 0:  # mosquitto gives up what it does not need, as on an operator's machine
            shutil.chown(folder / "data", "mosquitto")
        certs = folder / "maxgreen/certs"
        for authority, names in (
            (certs, ["ingest", "dapp", "homeassistant", THIEF, VICTIM]),
            (folder / "other", [THIEF]),
        ):
            command = [folder / "maxgreen/make-certs", authority, "127.0.0.1", *names]
            subprocess.run(command, check=True, capture_output=True)
        ports = {"8883": free_port(), "8884": free_port()}
        text = (folder / "maxgreen/mosquitto.conf").read_text()
        text = text.replace("/etc/mosquitto/maxgreen", f"{folder}/maxgreen").replace(
            "/var/lib/mosquitto", f"{folder}/data"
        )
        for known, port in ports.items():
            text = text.replace(f"listener {known}", f"listener {port}")
        (folder / "maxgreen/mosquitto.conf").write_text(text)
        log = folder / "log"
        with log.open("w") as said:
            process = subprocess.Popen([mosquitto_program, "-v", "-c", folder / "maxgreen/mosquitto.conf"], stderr=said)
        wait_for(lambda: " running" in log.read_text(), 30, f"mosquitto: {log.read_text()}")
        yield Broker(folder, ports["8883"], ports["8884"])
        stop(process)


class Broker:
    def __init__(self, folder, devices, services):
        self.folder, self.devices, self.services = folder, devices, services

    def client(self, name, client_id=None, *, port=None, certs="maxgreen/certs", version=mqtt.MQTTv5, **options):
        return Client(self, name, client_id or name, port or self.devices, certs, version, **options)


class Client:
    """Somebody at the broker; `met` are the messages that came."""

    def __init__(self, broker, name, client_id, port, certs, version, will=None, keep=False, patience_s=20):
        self.met, self.lost, self.codes, self._acks = queue.Queue(), queue.Queue(), queue.Queue(), queue.Queue()
        options = {} if version == mqtt.MQTTv5 else {"clean_session": not keep}
        self.paho = client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id, protocol=version, reconnect_on_failure=False, **options
        )
        folder = broker.folder
        context = ssl.create_default_context(cafile=folder / "maxgreen/certs/ca.crt")
        if certs:
            context.load_cert_chain(folder / certs / f"{name}.crt", folder / certs / f"{name}.key")
        client.tls_set_context(context)
        client.on_message = lambda _c, _d, message: self.met.put((message.topic, message.payload))
        client.on_disconnect = lambda _c, _d, _f, code, _p: self.lost.put(code)
        client.on_connect = lambda _c, _d, _f, code, _p: self.codes.put(code)
        client.on_publish = lambda _c, _d, _m, code, _p: self._acks.put(code)
        if will:
            client.will_set(*will, qos=1, retain=True)
        session = mqtt.Properties(mqtt.PacketTypes.CONNECT)
        session.SessionExpiryInterval = 3_600 if keep else 0
        more = {"clean_start": not keep, "properties": session} if version == mqtt.MQTTv5 else {}
        client.connect("127.0.0.1", port, 30, **more)
        client.loop_start()
        assert self.codes.get(timeout=patience_s) == "Success"

    def subscribe(self, *topics):
        self.paho.subscribe([(topic, SubscribeOptions(qos=1)) for topic in topics])
        time.sleep(0.2)

    def publish(self, topic, payload=b"x", *, retain=False):
        """Publish; return the broker's answer (MQTT 5)."""
        self.paho.publish(topic, payload, qos=1, retain=retain)
        try:
            return self._acks.get(timeout=20).value
        except queue.Empty:
            raise AssertionError(f"no answer: {topic}") from None

    def hears(self, seconds=0.5):
        found = []
        while True:
            try:
                found.append(self.met.get(timeout=seconds))
            except queue.Empty:
                return found

    def leave(self):
        self.paho.disconnect()
        self.paho.loop_stop()

    def drop(self):
        """Vanish, without a word."""
        connection = self.paho.socket()
        self.paho.loop_stop()
        connection.close()


@pytest.fixture
def ingest(broker):
    found = broker.client("ingest", "ingest-a", port=broker.services)
    found.subscribe("mg/v1/+/+/batch", "mg/v1/+/+/state", "mg/v1/+/+/status")
    yield found
    found.leave()


def topic(device, what):
    return device_topic(bytes.fromhex(device), what)


def test_what_a_client_calls_itself_counts_for_nothing(broker, ingest):
    outside, victim = broker.client("ingest"), broker.client(VICTIM)
    thieves = []
    for name in ("ingest", "ingest-a", VICTIM, "maxgreen", "x" * 200):
        thieves.append(broker.client(THIEF, name))
        time.sleep(0.1)
    assert all(client.lost.empty() for client in (ingest, outside, victim))
    assert [thief.lost.empty() for thief in thieves] == [False] * 4 + [True]  # they are all the one device
    for client in (outside, victim, thieves[-1]):
        client.leave()


def test_nobody_writes_where_others_are_read(broker, ingest):
    victim = broker.client(VICTIM)
    victim.subscribe(topic(VICTIM, "receipt"), topic(VICTIM, "command"), "mg/v1/beacon")
    foreign = [
        *(topic(VICTIM, what) for what in ("batch", "state", "status", "receipt", "command")),
        topic(THIEF, "receipt"), topic(THIEF, "command"), "mg/v1/beacon", "mg/v1", "other", "$SYS/broker/uptime",
        f"homeassistant/device/{VICTIM}/config", f"mg/v1/{THIEF[:2]}/{THIEF}/batch/more",
        f"mg/v1/{THIEF}/{VICTIM}/batch",
    ]  # fmt: skip
    for place in foreign:
        for retain in (False, True):
            other = broker.client(THIEF)  # Mosquitto 2.0.11 also disconnects who was refused
            assert other.publish(place, retain=retain) == NOT_AUTHORISED, place
            other.leave()
    thief = broker.client(THIEF)
    assert thief.publish(topic(THIEF, "batch"), b"mine") == 0
    assert ingest.hears() == [(topic(THIEF, "batch"), b"mine")]
    assert victim.hears() == []
    late = broker.client("ingest", "ingest-b", port=broker.services)
    late.subscribe("mg/v1/+/+/batch", "mg/v1/+/+/status")
    assert late.hears() == []  # nothing was retained
    for client in (victim, thief, late):
        client.leave()


def test_nobody_hears_what_is_not_for_them(broker, ingest):
    thief = broker.client(THIEF)
    thief.subscribe(
        "#", "$SYS/#", "mg/#", "mg/v1/+/+/batch", topic(VICTIM, "receipt"), topic(VICTIM, "command"), "+/+/+/+/receipt",
        f"$share/all/{topic(VICTIM, 'command')}", "$share/all/#", "homeassistant/#",
    )  # fmt: skip
    thief.hears()
    victim = broker.client(VICTIM)
    assert victim.publish(topic(VICTIM, "batch"), b"household") == 0
    for what in ("receipt", "command"):
        assert ingest.publish(topic(VICTIM, what), b"for the victim", retain=what == "receipt") == 0
    assert ingest.publish("mg/v1/beacon", b"for all", retain=True) == 0
    assert ingest.publish(topic(THIEF, "receipt"), b"for the thief") == 0
    assert {place for place, _ in thief.hears()} <= {"mg/v1/beacon", topic(THIEF, "receipt")}
    pages = broker.client("dapp", port=broker.services)
    pages.subscribe("#", "mg/v1/+/+/batch", "mg/v1/+/+/state")
    assert victim.publish(topic(VICTIM, "batch"), b"household") == 0
    assert {place for place, _ in pages.hears()} <= {"mg/v1/beacon"}
    assert pages.publish(topic(VICTIM, "command")) == NOT_AUTHORISED
    ingest.publish(topic(VICTIM, "receipt"), b"", retain=True)
    ingest.publish("mg/v1/beacon", b"", retain=True)
    for client in (victim, thief, pages):
        client.leave()


def test_a_will_is_left_only_at_ones_own_place(broker, ingest):
    for place in (topic(VICTIM, "status"), topic(VICTIM, "batch"), "mg/v1/beacon"):
        broker.client(THIEF, will=(place, b"last words")).drop()
    assert ingest.hears(2) == []
    broker.client(THIEF, will=(topic(THIEF, "status"), b"offline")).drop()
    assert ingest.hears(3) == [(topic(THIEF, "status"), b"offline")]
    again = broker.client(THIEF)
    assert again.publish(topic(THIEF, "status"), b"", retain=True) == 0
    again.leave()


def test_a_client_that_is_away_is_kept_what_is_for_itself(broker, ingest):
    thief = broker.client(THIEF, keep=True)
    thief.subscribe("#", topic(THIEF, "receipt"), "mg/v1/+/+/batch")
    thief.leave()
    victim = broker.client(VICTIM)
    for number in range(50):
        assert victim.publish(topic(VICTIM, "batch"), b"%d" % number) == 0
    assert ingest.publish(topic(THIEF, "receipt"), b"yours") == 0
    thief = broker.client(THIEF, "another", keep=True)
    assert set(thief.hears(1)) == {(topic(THIEF, "receipt"), b"yours")}
    thief.leave()
    victim.leave()


def test_a_message_that_is_too_large_ends_its_own_connection(broker, ingest):
    thief = broker.client(THIEF, version=mqtt.MQTTv311)
    thief.paho.publish(topic(THIEF, "batch"), b"x" * 70_000, qos=1)
    thief.lost.get(timeout=20)
    thief.paho.loop_stop()
    assert ingest.lost.empty()
    assert ingest.hears() == []


def test_what_is_refused_is_counted_by_ingest(broker):
    counts, certs = Counter(), broker.folder / "maxgreen/certs"
    files = {"ca": certs / "ca.crt", "certificate": certs / "ingest.crt", "key": certs / "ingest.key"}
    source = MqttSource(
        BrokerSettings(host="127.0.0.1", port=broker.services, client_id="counting", **files),
        lambda: None, on_refusal=lambda kind: counts.update([kind]),
    )  # fmt: skip
    source.start()
    try:
        wait_for(lambda: source.alarm is None, 30, "a connection")
        for stranger in ("other", None):
            with suppress(ssl.SSLError, OSError, queue.Empty):
                broker.client(THIEF, certs=stranger, version=mqtt.MQTTv311, patience_s=3)
        wait_for(lambda: counts["certificate"] == 2, 30, f"the refused certificates: {counts}")
        with socket.create_connection(("127.0.0.1", broker.devices)) as scanner:
            scanner.sendall(b"GET / HTTP/1.0\r\n\r\n")
            wait_for(lambda: counts["handshake"] >= 1, 30, f"what is no TLS: {counts}")
        twins = [broker.client(THIEF), broker.client(THIEF)]
        wait_for(lambda: counts["twice"] == 1, 30, f"one certificate at two places: {counts}")
        thief = broker.client(THIEF, version=mqtt.MQTTv311)
        thief.paho.publish(topic(THIEF, "batch"), b"x" * 70_000, qos=1)
        wait_for(lambda: counts["client"] >= 1, 30, f"a packet that is too large: {counts}")
        assert source.receive(100, 0.5, 0.0) == []  # what the broker says is no batch
        for client in (*twins, thief):
            client.leave()
    finally:
        source.stop()


def test_without_a_certificate_of_ours_nobody_comes_in(broker):
    for certs in (None, "other"):
        with pytest.raises((ssl.SSLError, ConnectionError, OSError, queue.Empty)):
            broker.client(THIEF, certs=certs, version=mqtt.MQTTv311, patience_s=3).publish(topic(THIEF, "batch"))


def test_the_brokers_key_is_read_by_the_broker_and_the_others_by_nobody(broker):
    certs = broker.folder / "maxgreen/certs"
    for path in certs.glob("*.key"):
        assert path.stat().st_mode & 0o037 == 0, path
        if path.name != "server.key":
            assert path.stat().st_mode & 0o077 == 0, path


def test_a_display_reads_what_devices_say_and_writes_nothing(broker, ingest):
    from edge_agent.homeassistant import discovery_topic

    display, device = broker.client("homeassistant"), broker.client(VICTIM)
    display.subscribe("homeassistant/#", "mg/v1/+/+/state", "mg/v1/+/+/status", "mg/v1/+/+/batch", "mg/v1/+/+/command")
    own = discovery_topic(bytes.fromhex(VICTIM))
    for where in (own, topic(VICTIM, "state"), topic(VICTIM, "status"), topic(VICTIM, "batch")):
        assert device.publish(where, b"mine", retain=where != topic(VICTIM, "batch")) == 0
    assert {where for where, _ in display.hears()} == {own, topic(VICTIM, "state"), topic(VICTIM, "status")}
    assert display.publish("homeassistant/status", b"online") == NOT_AUTHORISED
    device.leave()
