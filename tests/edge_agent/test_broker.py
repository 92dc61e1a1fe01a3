"""The real Mosquitto: MQTT 5 with a session that lasts, TLS that is refused in words, and recovery without a hand."""

import logging
import queue
import re
import shutil
import subprocess
import time

import paho.mqtt.client as mqtt
import pytest

from edge_agent.config import BrokerSettings, ProtocolName
from edge_agent.mqtt_link import MqttLink
from edge_agent.uplink import retained_receipt
from maxgreen.mqtt import Connected, Incoming
from maxgreen.protocol.backend import BackendKeys, Receipt, sign_receipt
from maxgreen.protocol.identity import device_topic
from simulator.lab import NETWORK, T0_MS, Lab
from tests.conftest import ROOT, free_port, need, stop, wait_for
from tests.edge_agent.test_agent import BACKEND

pytestmark = pytest.mark.services
DEVICE = Lab().device


class Mosquitto:
    """A broker that a test stops and starts again."""

    def __init__(self, program, folder, extra=""):
        self.program, self.folder, self.port, self.process = program, folder, free_port(), None
        text = (
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location {folder}/\n"
        )
        (folder / "broker.conf").write_text(text + "user root\n" + extra)

    def start(self):
        log = self.folder / "log"
        log.write_text("")
        self.process = subprocess.Popen([self.program, "-v", "-c", self.folder / "broker.conf"], stderr=log.open("w"))
        wait_for(lambda: "running" in log.read_text(), what="mosquitto")
        return self

    def stop(self):
        stop(self.process)

    def log(self):
        return (self.folder / "log").read_text()


@pytest.fixture
def broker(tmp_path, mosquitto_program):
    found = Mosquitto(mosquitto_program, tmp_path)
    found.start()
    yield found
    found.stop()


def incoming(link, seconds=5):
    """Yield the messages that came, until none comes for a while."""
    try:
        while True:
            notice = link.notices.get(timeout=seconds)
            if isinstance(notice, Incoming):
                yield notice
    except queue.Empty:
        return


def connected(link, seconds=20):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if isinstance(link.notices.get(timeout=seconds), Connected):
            return True
    return False


def test_mqtt_5_keeps_its_session_over_a_restart_of_the_agent(broker):
    settings = BrokerSettings(port=broker.port)
    topic = device_topic(DEVICE, "command")
    for round_number in range(2):
        link = MqttLink(settings, DEVICE, b"{}")
        link.start()
        if round_number:  # what waited may come before the answer to our subscriptions
            assert any((found.topic, found.payload) == (topic, b"while away") for found in incoming(link))
        else:
            assert connected(link)
        link.stop()
        if not round_number:
            time.sleep(0.2)
            sender = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
            sender.connect("127.0.0.1", broker.port)
            sender.loop_start()
            sender.publish(topic, b"while away", qos=1).wait_for_publish(5)
            sender.disconnect()
            sender.loop_stop()
    assert f"as {DEVICE.hex()} (p5, c0" in broker.log()


def test_an_agent_that_may_speak_3_1_1_only_does(broker):
    link = MqttLink(BrokerSettings(port=broker.port, protocol=ProtocolName.MQTT311), DEVICE, b"{}")
    link.start()
    assert connected(link)
    link.stop()
    assert re.search(rf"as {DEVICE.hex()} \(p[24], c0", broker.log())  # 2.1 says 4, as MQTT does


def test_a_broker_that_goes_and_comes_back_needs_no_hand(broker, caplog):
    link = MqttLink(BrokerSettings(port=broker.port), DEVICE, b"{}")
    link.start()
    assert connected(link)
    broker.stop()
    time.sleep(0.5)
    assert link.publish("x", b"y", retain=False, session=1) is None  # nothing waits in paho's queue
    broker.start()
    assert connected(link, 30)
    link.stop()


def test_a_broker_that_refuses_is_said_and_asked_again(tmp_path, mosquitto_program, caplog):
    refusing = Mosquitto(mosquitto_program, tmp_path)
    path = tmp_path / "broker.conf"
    path.write_text(path.read_text().replace("allow_anonymous true", "allow_anonymous false"))
    refusing.start()
    link = MqttLink(BrokerSettings(port=refusing.port), DEVICE, b"{}")
    with caplog.at_level(logging.WARNING):
        link.start()
        wait_for(lambda: "refused the connection" in caplog.text, what="a refusal")
    refusing.stop()
    path.write_text(path.read_text().replace("allow_anonymous false", "allow_anonymous true"))
    refusing.start()
    assert connected(link, 30)
    link.stop()
    refusing.stop()


def certificates(folder, days):
    subprocess.run(
        [ROOT / "broker_config/make-certs", folder, "127.0.0.1", DEVICE.hex()], check=True, capture_output=True
    )
    if days < 0:  # the broker's certificate is over
        subprocess.run(
            f"cd {folder} && openssl req -new -key server.key -subj /CN=127.0.0.1 -out s.csr && "
            "printf subjectAltName=IP:127.0.0.1 > s.ext && "
            "openssl x509 -req -in s.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days -1 -extfile s.ext -out server.crt",
            shell=True, check=True, capture_output=True,
        )  # fmt: skip


def test_an_expired_certificate_is_named_in_the_log(tmp_path, mosquitto_program, caplog):
    need(shutil.which("openssl"), "openssl is not installed (apt-get install openssl)")
    certs = tmp_path / "certs"
    certificates(certs, -1)
    broker = Mosquitto(
        mosquitto_program, tmp_path,
        f"cafile {certs}/ca.crt\ncertfile {certs}/server.crt\nkeyfile {certs}/server.key\n",
    )  # fmt: skip
    broker.start()
    settings = BrokerSettings(
        host="127.0.0.1", port=broker.port, ca=certs / "ca.crt",
        certificate=certs / f"{DEVICE.hex()}.crt", key=certs / f"{DEVICE.hex()}.key",
    )  # fmt: skip
    link = MqttLink(settings, DEVICE, b"{}")
    with caplog.at_level(logging.WARNING):
        link.start()
        wait_for(lambda: "certificate has expired" in caplog.text, what="the reason")
    link.stop()
    broker.stop()


def test_the_receipt_that_a_broker_retains_is_found_for_a_recovery(broker):
    head = b"h" * 32
    sender = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    sender.connect("127.0.0.1", broker.port)
    sender.loop_start()
    message = sign_receipt(Receipt(DEVICE, 5, head, T0_MS, 7), BACKEND, NETWORK)
    sender.publish(device_topic(DEVICE, "receipt"), message, qos=1, retain=True).wait_for_publish(5)
    sender.disconnect()
    sender.loop_stop()
    keys = BackendKeys((BACKEND.spki,), NETWORK)
    link = MqttLink(BrokerSettings(port=broker.port), DEVICE, b"{}")
    assert retained_receipt(link, DEVICE, keys, 10).head == head
    other = MqttLink(BrokerSettings(port=broker.port), bytes(16), b"{}")
    assert retained_receipt(other, bytes(16), keys, 1) is None
