"""The real link under load: Mosquitto over TLS, batches out and messages in, and a proxy that cuts the connection.

    python -m tests.edge_agent.soak SECONDS RATE CUTS

Prints one JSON object: batches, how many arrived, how often one arrived more than once without need, disconnects that
nobody made.
"""

import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import paho.mqtt.client as mqtt

from edge_agent.config import BrokerSettings
from edge_agent.mqtt_link import MqttLink
from edge_agent.spool import Spool
from edge_agent.uplink import Uplink
from maxgreen.clock import SystemClock
from maxgreen.mqtt import Disconnected
from maxgreen.protocol.backend import BackendKeys, Receipt, sign_receipt
from maxgreen.protocol.batch import parse_batch
from maxgreen.protocol.cose import network_digest
from maxgreen.protocol.identity import BEACON_TOPIC, device_topic
from maxgreen.protocol.keys import MemorySigner
from simulator.lab import NETWORK, Lab
from tests.conftest import ROOT, free_port, stop, wait_for
from tests.edge_agent.test_agent import make_sealer, ticks
from tests.proxy import Proxy

BACKEND = MemorySigner.from_secret(2)
DEVICE = Lab().device


class TlsBroker:
    """The project's own broker settings, on certificates of its own."""

    def __init__(self, program, folder, devices=(DEVICE,)):
        self.program, self.folder, self.port = program, folder, free_port()
        subprocess.run(
            [ROOT / "broker_config/make-certs", folder / "certs", "127.0.0.1", "ingest", *[d.hex() for d in devices]],
            check=True, capture_output=True,
        )  # fmt: skip
        shutil.copy(ROOT / "broker_config/acl", folder / "acl")
        text = (ROOT / "broker_config/mosquitto.conf").read_text()
        text = text.replace("/etc/mosquitto/maxgreen/", f"{folder}/").replace("/var/lib/mosquitto/", f"{folder}/")
        text = text.replace("listener 8883", f"listener {self.port} 127.0.0.1") + "\nuser root\n"
        (folder / "mosquitto.conf").write_text(text)
        self.start()

    def start(self):
        log = self.folder / "broker.log"
        self.process = subprocess.Popen([self.program, "-c", self.folder / "mosquitto.conf"], stderr=log.open("w"))
        wait_for(lambda: "running" in log.read_text(), what="mosquitto")

    def files(self, name):
        certs = self.folder / "certs"
        return {"ca": certs / "ca.crt", "certificate": certs / f"{name}.crt", "key": certs / f"{name}.key"}

    def stop(self):
        stop(self.process)


class Ledger:
    """Takes batches in order, and answers each with a receipt and a beacon's worth of noise."""

    def __init__(self, broker):
        files = broker.files("ingest")
        self.next_seq, self.head, self.arrived = 0, network_digest(NETWORK), {}
        self.client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id="ingest", clean_session=False, protocol=mqtt.MQTTv311
        )
        self.client.tls_set(str(files["ca"]), str(files["certificate"]), str(files["key"]))
        self.client.max_inflight_messages_set(0)
        self.client.on_connect = lambda c, *_: c.subscribe("mg/v1/+/+/batch", 1)
        self.client.on_message = self._take
        self.client.connect("127.0.0.1", broker.port)
        self.client.loop_start()

    def _take(self, _client, _data, message):
        payload = bytes(message.payload)
        seq = parse_batch(payload).batch.seq
        self.arrived[seq] = self.arrived.get(seq, 0) + 1
        if seq == self.next_seq:
            self.next_seq, self.head = seq + 1, hashlib.sha256(payload).digest()
        receipt = Receipt(DEVICE, self.next_seq, self.head, time.time_ns() // 10**6, 0x1F100000)
        self.client.publish(device_topic(DEVICE, "receipt"), sign_receipt(receipt, BACKEND, NETWORK), 1, retain=True)
        self.client.publish(BEACON_TOPIC, b"noise" * 100, 1)

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


def soak(program, folder, seconds, rate, cuts):
    """Run; return what was counted."""
    broker = TlsBroker(program, folder)
    ledger, proxy = Ledger(broker), Proxy(broker.port)
    spool = Spool(folder / "spool.db", network_digest(NETWORK))
    spool._db.execute("PRAGMA synchronous=OFF")  # the medium is tried elsewhere
    link = MqttLink(BrokerSettings(host="127.0.0.1", port=proxy.port, **broker.files(DEVICE.hex())), DEVICE, b"{}")
    uplink = Uplink(
        link, spool, DEVICE, BackendKeys((BACKEND.spki,), NETWORK), NETWORK, SystemClock(), window=20, resend_s=30
    )
    needed, disconnects = 0, []
    original = uplink._handle

    def handle(notice):
        nonlocal needed
        if isinstance(notice, Disconnected):
            disconnects.append(notice.reason)
            needed += len(uplink._tickets)  # the broker had not answered: they have to go again
        original(notice)

    uplink._handle = handle
    sealer = make_sealer(spool, seal_ms=1_000)
    given = ticks(0, 10**9)
    chance = random.Random(1)
    begun = time.monotonic()
    cut_at = [begun + (k + chance.uniform(0.2, 0.8)) * seconds / cuts for k in range(cuts)]
    made, state_s, done = 0, 0.0, 0
    uplink.start()
    while (now := time.monotonic()) < begun + seconds:
        while made < (now - begun) * rate:
            sealer.take(next(given))
            made += 1
        if cut_at and now >= cut_at[0] and uplink.connected:
            cut_at.pop(0)
            done += 1
            proxy.cut()
        if now >= state_s:
            uplink.publish_json("state", {"power_w": {"0": now}, "filling": "x" * 2_000})
            state_s = now + 1 / rate
        uplink.process(0.005)
    deadline = time.monotonic() + 120
    while not uplink.delivered and time.monotonic() < deadline:
        uplink.process(0.05)
    uplink.stop(bytes(16))
    proxy.close()
    ledger.close()
    broker.stop()
    doubles = sum(count - 1 for count in ledger.arrived.values())
    return {
        "batches": spool.tip.next_seq,
        "arrived": len(ledger.arrived),
        "in_order_at_the_ledger": ledger.next_seq,
        "cuts": done,
        "disconnects_of_our_making": len(disconnects) - done - _refused(disconnects),
        "doubles": doubles,
        "doubles_without_need": max(0, doubles - needed),
        "reasons": sorted(set(disconnects)),
    }


def _refused(reasons):
    """Attempts that the proxy or broker did not answer are no connections."""
    return sum("refused" in reason or "timed out" in reason for reason in reasons)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        print(json.dumps(soak(program, Path(folder), float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))))
