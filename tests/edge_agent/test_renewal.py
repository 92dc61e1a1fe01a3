"""A renewed certificate reaches its device over the broker, and is used; whatever else comes there is not."""

import os
import random
import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from edge_agent.config import BrokerSettings as AgentBroker
from edge_agent.identity import make_tls_key
from edge_agent.mqtt_link import MqttLink
from edge_agent.renewal import take_certificate
from ingest.certificates import Certificates
from ingest.config import BrokerSettings
from ingest.source import MqttSource
from maxgreen.authority import Authority, Request, make_key, read_request
from simulator.lab import Lab
from tests.conftest import ROOT, free_port, stop, wait_for

pytestmark = pytest.mark.services


class Owned:
    """An authority and a device with a certificate of ten days."""

    def __init__(self, folder):
        self.folder, self.lab = folder, Lab()
        self.authority = Authority.create(folder / "ca", "test", 5)
        self.own = folder / "device"
        self.own.mkdir()
        make_tls_key(self.own, self.lab.signer)
        self.request = read_request((self.own / "tls.csr").read_bytes())
        (self.own / "tls.crt").write_text(self.authority.issue(self.request, 10).pem)
        shutil.copy(folder / "ca/ca.crt", self.own / "ca.crt")
        self.settings = self.broker()

    def broker(self, port=8883, **more):
        files = {"ca": self.own / "ca.crt", "certificate": self.own / "tls.crt", "key": self.own / "tls.key"}
        return AgentBroker(port=port, **files, **more)

    def ends(self):
        return x509.load_pem_x509_certificate((self.own / "tls.crt").read_bytes()).not_valid_after_utc


@pytest.fixture
def owned(tmp_path):
    return Owned(tmp_path)


@pytest.mark.rule("P-ID-7")
def test_only_a_newer_certificate_of_ones_own_key_and_authority_is_taken(owned, tmp_path, caplog):
    lab, take = owned.lab, lambda data: take_certificate(owned.settings, owned.lab.device, data)
    before = (owned.own / "tls.crt").read_bytes()
    stranger = Authority.create(tmp_path / "stranger", "test", 5)  # of the same name
    other_key = Request(lab.device.hex(), ec.generate_private_key(ec.SECP256R1()).public_key())
    other_name = Request("ab" * 16, owned.request.key)
    for bad in (
        stranger.issue(owned.request, 300).pem,
        owned.authority.issue(other_name, 300).pem,
        owned.authority.issue(other_key, 300, replace=True).pem,
        "", "rubbish", "x" * 100_000,
        (tmp_path / "ca/ca.crt").read_text(),
    ):  # fmt: skip
        assert not take(bad.encode())
    assert not take(owned.authority.issue(owned.request, 5, replace=True).pem.encode())  # ends earlier
    chance, good = random.Random(1), owned.authority.issue(owned.request, 300).pem.encode()
    for _ in range(500):
        data = bytearray(good)
        data[chance.randrange(30, len(data))] = chance.randrange(256)
        if bytes(data) != good and take(bytes(data)):  # the lines' ends alone may differ
            assert x509.load_pem_x509_certificate(
                (owned.own / "tls.crt").read_bytes()
            ) == x509.load_pem_x509_certificate(good)
            (owned.own / "tls.crt").write_bytes(before)
    assert (owned.own / "tls.crt").read_bytes() == before
    assert take(good)
    assert owned.ends() > datetime.now(UTC) + timedelta(days=290)
    assert not take(good)  # the broker retains it: it comes again with each connection


@pytest.mark.rule("P-ID-7")
def test_a_renewed_certificate_comes_over_the_broker_and_the_next_connection_uses_it(mosquitto_program):
    import subprocess

    with tempfile.TemporaryDirectory(prefix="maxgreen-renew-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        owned = Owned(folder)
        certs = folder / "maxgreen/certs"
        shutil.copytree(ROOT / "broker_config", folder / "maxgreen")
        certs.mkdir()
        for who, hosts in (("server", ["127.0.0.1"]), ("ingest", [])):
            made = owned.authority.issue(make_key(certs / f"{who}.key", who), 100, hosts=hosts, server=bool(hosts))
            (certs / f"{who}.crt").write_text(made.pem)
        shutil.copy(folder / "ca/ca.crt", certs)
        (folder / "data").mkdir()
        if os.geteuid() == 0:
            for path in (folder / "data", certs / "server.key"):
                shutil.chown(path, "mosquitto")
        port, services = free_port(), free_port()
        text = (folder / "maxgreen/mosquitto.conf").read_text().replace("/etc/mosquitto/maxgreen", f"{folder}/maxgreen")
        text = text.replace("/var/lib/mosquitto", f"{folder}/data").replace(
            "listener 8883", f"listener {port} 127.0.0.1"
        )
        (folder / "m.conf").write_text(text.replace("listener 8884", f"listener {services}"))
        log = folder / "log"
        process = subprocess.Popen([mosquitto_program, "-c", folder / "m.conf"], stderr=log.open("w"))
        wait_for(lambda: " running" in log.read_text(), 30, "mosquitto")
        files = {"ca": certs / "ca.crt", "certificate": certs / "ingest.crt", "key": certs / "ingest.key"}
        source = MqttSource(BrokerSettings(port=services, **files), lambda: None)
        link = MqttLink(owned.broker(port), owned.lab.device, b"{}")
        renewed, sender = folder / "renewed", None
        try:
            source.start()
            link.start()
            sender = Certificates(renewed, source)
            assert sender.step() > 0  # nothing was renewed yet
            renewed.mkdir()
            old = owned.ends()
            (renewed / f"{owned.lab.device.hex()}.crt").write_text(owned.authority.issue(owned.request, 400).pem)
            (renewed / "notes.txt").write_text("not a certificate")
            wait_for(lambda: sender.step() and owned.ends() > old, 60, "the new certificate")
            link.stop()
            again = MqttLink(owned.broker(port), owned.lab.device, b"{}")
            again.start()
            wait_for(lambda: not again.notices.empty(), 60, "a connection with it")
            again.stop()
        finally:
            source.stop()
            link.stop()
            stop(process)
