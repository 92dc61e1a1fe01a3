"""The broker as broker_config configures it, and somebody with a certificate at it."""

import os
import queue
import shutil
import ssl
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import paho.mqtt.client as mqtt
from paho.mqtt.subscribeoptions import SubscribeOptions

from tests.conftest import ROOT, free_port, need, stop, wait_for


@contextmanager
def real_broker(program, devices):
    """Run Mosquitto with the files of broker_config, in another folder and at other ports, with certificates of devices.

    Beside them are those of another authority (`other`), for the first device.
    """
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
            (certs, ["ingest", "dapp", "homeassistant", *devices]),
            (folder / "other", devices[:1]),
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
            process = subprocess.Popen([program, "-v", "-c", folder / "maxgreen/mosquitto.conf"], stderr=said)
        wait_for(lambda: " running" in log.read_text(), 30, f"mosquitto: {log.read_text()}")
        try:
            yield Broker(folder, ports["8883"], ports["8884"])
        finally:
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
