"""What somebody with a device's certificate can do to the broker, as it is configured and started in broker_config."""

import queue
import socket
import ssl
import time
from collections import Counter
from contextlib import suppress

import paho.mqtt.client as mqtt
import pytest

from ingest.config import BrokerSettings
from ingest.source import MqttSource
from maxgreen.protocol.identity import device_topic
from tests.conftest import wait_for
from tests.deploy.brokers import real_broker

pytestmark = pytest.mark.services
THIEF, VICTIM = "aa" * 16, "bb" * 16
NOT_AUTHORISED = 135


@pytest.fixture(scope="module")
def broker(mosquitto_program):
    with real_broker(mosquitto_program, [THIEF, VICTIM]) as found:
        yield found


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
        wait_for(lambda: counts["certificate"] == 1, 30, f"the refused certificate: {counts}")
        wait_for(lambda: counts["handshake"] == 1, 30, f"the one without a certificate: {counts}")
        with socket.create_connection(("127.0.0.1", broker.devices)) as scanner:
            scanner.sendall(b"GET / HTTP/1.0\r\n\r\n")
            wait_for(lambda: counts["handshake"] >= 2, 30, f"what is no TLS: {counts}")
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
    later = broker.client("ingest", "counting", port=broker.services, version=mqtt.MQTTv311, keep=True)
    with suppress(ssl.SSLError, OSError, queue.Empty):
        broker.client(THIEF, certs="other", version=mqtt.MQTTv311, patience_s=3)
    assert later.hears() == []  # a version of before, in the same session, is not told
    later.leave()


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


def test_a_display_reads_what_devices_say_and_writes_that_it_is_there(broker, ingest):
    from edge_agent.homeassistant import discovery_topic

    display, device = broker.client("homeassistant"), broker.client(VICTIM)
    display.subscribe("homeassistant/#", "mg/v1/+/+/state", "mg/v1/+/+/status", "mg/v1/+/+/batch", "mg/v1/+/+/command")
    own = discovery_topic(bytes.fromhex(VICTIM))
    for where in (own, topic(VICTIM, "state"), topic(VICTIM, "status"), topic(VICTIM, "batch")):
        assert device.publish(where, b"mine", retain=where != topic(VICTIM, "batch")) == 0
    assert {where for where, _ in display.hears()} == {own, topic(VICTIM, "state"), topic(VICTIM, "status")}
    assert display.publish("homeassistant/status", b"online") == 0
    for where in (own, topic(VICTIM, "command"), topic(VICTIM, "state"), "homeassistant/other"):
        other = broker.client("homeassistant")  # Mosquitto 2.0.11 ends who was refused
        assert other.publish(where, b"mine") == NOT_AUTHORISED
        other.leave()
    device.leave()
