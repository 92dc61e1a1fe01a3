"""Certificates: for registered devices, of their own keys, refused by a real broker once they are revoked."""

import json
import os
import queue
import random
import shutil
import signal
import ssl
import subprocess
import tempfile
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner

from edge_agent.identity import make_tls_key
from maxgreen.authority import Authority, Request, read_request
from maxgreen.authority_cli import app
from maxgreen.errors import Fatal, UsageError
from maxgreen.ledger.engine import open_engine
from maxgreen.ledger.registry import KnownDevice, put_devices
from maxgreen.verify.rules import DeviceRecord, Status
from simulator.lab import Lab
from tests.conftest import ROOT, free_port, need, stop, wait_for
from tests.deploy.brokers import Broker


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=True)


class Yard:
    """An authority, a ledger, and two devices with their requests; the first is registered."""

    def __init__(self, folder):
        self.folder, self.ca, self.out = folder, folder / "ca", folder / "out"
        self.ledger = f"sqlite:///{folder / 'ledger.db'}"
        self.labs = [Lab(secret=31), Lab(secret=32)]
        for lab in self.labs:
            (folder / lab.device.hex()).mkdir()
            make_tls_key(folder / lab.device.hex(), lab.signer)
        self.register(Status.ACTIVE)
        assert run("init", "--dir", self.ca).exit_code == 0

    def register(self, *statuses, until_ms=None):
        known = tuple(enumerate(statuses))
        record = DeviceRecord(self.labs[0].signer.spki, known, ((0, 0),), None, until_ms)
        with open_engine(self.ledger).begin() as connection:
            put_devices(connection, [KnownDevice(record, 1, "0x" + "11" * 20, {"kind": "miner", "channels": []})])

    def request(self, number=0):
        return self.folder / self.labs[number].device.hex() / "tls.csr"

    def sign(self, number=0, *more):
        return run("sign", self.request(number), "--out", self.out, "--dir", self.ca, "--ledger", self.ledger, *more)

    def certificate(self, number=0):
        return x509.load_pem_x509_certificate((self.out / f"{self.labs[number].device.hex()}.crt").read_bytes())


@pytest.fixture
def yard(tmp_path):
    return Yard(tmp_path)


def test_a_registered_device_gets_a_certificate_of_its_own_key_and_no_other_does(yard):
    assert yard.sign().exit_code == 0
    found = yard.certificate()
    request = read_request(yard.request().read_bytes())
    assert found.public_key() == request.key
    assert found.subject.rfc4514_string() == f"CN={yard.labs[0].device.hex()}"
    found.verify_directly_issued_by(Authority(yard.ca).certificate)
    other = yard.sign(1)
    assert other.exit_code == 2
    assert "is not registered" in other.output
    assert not (yard.out / f"{yard.labs[1].device.hex()}.crt").exists()
    assert run("sign", yard.request(), "--out", yard.out, "--dir", yard.ca).exit_code == 2  # which registry?
    yard.register(Status.ACTIVE, Status.SUSPENDED)
    assert "suspended" in yard.sign().output
    yard.register(Status.ACTIVE, until_ms=1)
    assert "replaced" in yard.sign().output
    assert (yard.ca / "ca.key").stat().st_mode & 0o077 == 0
    assert not [path for path in yard.out.iterdir() if path.suffix == ".key"]


def test_somebody_elses_request_does_not_take_a_devices_place(yard):
    assert yard.sign().exit_code == 0
    shutil.rmtree(yard.request().parent)
    yard.request().parent.mkdir()
    make_tls_key(yard.request().parent, yard.labs[0].signer)
    again = yard.sign()
    assert again.exit_code == 2
    assert "of another key" in again.output
    first = yard.certificate().serial_number
    assert yard.sign(0, "--replace").exit_code == 0
    assert yard.certificate().serial_number != first
    revoked = x509.load_pem_x509_crl((yard.ca / "crl.pem").read_bytes())
    assert revoked.is_signature_valid(Authority(yard.ca).certificate.public_key())
    assert [one.serial_number for one in revoked] == [first]


def test_what_ends_soon_is_renewed_for_the_same_key_and_what_the_dao_ended_is_revoked(yard):
    assert yard.sign(0, "--days", 30).exit_code == 0
    first = yard.certificate()
    assert run("renew", "--out", yard.out, "--ledger", yard.ledger, "--dir", yard.ca).exit_code == 0
    assert yard.certificate().public_key() == first.public_key()
    assert yard.certificate().not_valid_after_utc > first.not_valid_after_utc
    assert run("follow", "--ledger", yard.ledger, "--dir", yard.ca).output == "nothing to revoke\n"
    yard.register(Status.ACTIVE, Status.SUSPENDED)
    assert "1 revoked" in run("follow", "--ledger", yard.ledger, "--dir", yard.ca).output
    listed = json.loads(run("list", "--json", "--dir", yard.ca).output)["certificates"]
    assert [one["revoked_s"] is not None for one in listed] == [True, True]


def test_an_authority_is_made_once_and_a_service_goes_on_with_its_key(yard):
    again = run("init", "--dir", yard.ca)
    assert isinstance(again.exception, Fatal)
    assert isinstance(run("list", "--dir", yard.folder / "none").exception, Fatal)
    for name in ("ingest", "dapp"):
        assert run("client", name, "--out", yard.out, "--dir", yard.ca).exit_code == 0
    key = (yard.out / "ingest.key").read_bytes()
    assert run("client", "ingest", "--out", yard.out, "--dir", yard.ca).exit_code == 0
    assert (yard.out / "ingest.key").read_bytes() == key
    assert isinstance(run("client", "ab" * 16, "--out", yard.out, "--dir", yard.ca).exception, UsageError)
    assert run("server", "broker.example", "127.0.0.1", "--out", yard.out, "--dir", yard.ca).exit_code == 0
    found = x509.load_pem_x509_certificate((yard.out / "server.crt").read_bytes())
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["broker.example"]
    before = found.serial_number
    renewed = run("renew", "--out", yard.folder / "no", "--services", yard.out, "--within", 900, "--ledger", yard.ledger,
                  "--dir", yard.ca)  # fmt: skip
    assert renewed.exit_code == 0
    found = x509.load_pem_x509_certificate((yard.out / "server.crt").read_bytes())
    assert found.serial_number != before
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["broker.example"]
    assert list(map(str, names.get_values_for_type(x509.IPAddress))) == ["127.0.0.1"]
    assert isinstance(run("revoke", "nobody", "--dir", yard.ca).exception, UsageError)


def asking(key, *names, hash_=None):
    subject = x509.Name([x509.NameAttribute(oid, text) for oid, text in names])
    return x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hash_ or hashes.SHA256())


def test_requests_that_are_none_are_refused_in_words():
    key, cn = ec.generate_private_key(ec.SECP256R1()), NameOID.COMMON_NAME
    good = asking(key, (cn, "ab" * 16)).public_bytes(Encoding.PEM)
    assert read_request(good).name == "ab" * 16
    for bad in (
        b"", b"x" * 20_000, b"-----BEGIN CERTIFICATE REQUEST-----\nAA==\n-----END CERTIFICATE REQUEST-----\n",
        asking(ec.generate_private_key(ec.SECP384R1()), (cn, "ab" * 16)).public_bytes(Encoding.PEM),
        asking(key, (cn, "ab" * 16), (NameOID.ORGANIZATION_NAME, "x")).public_bytes(Encoding.PEM),
        asking(key, (cn, "a/b")).public_bytes(Encoding.PEM), asking(key).public_bytes(Encoding.PEM),
    ):  # fmt: skip
        with pytest.raises(UsageError):
            read_request(bad)
    forged = bytearray(asking(key, (cn, "ab" * 16)).public_bytes(Encoding.DER))
    forged[-1] ^= 1
    with pytest.raises(UsageError):
        read_request(x509_pem(bytes(forged)))
    chance = random.Random(1)
    for _ in range(2_000):
        data = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            assert isinstance(read_request(bytes(data)), Request)
        except UsageError:
            continue


def x509_pem(der):
    import base64

    body = base64.encodebytes(der).decode()
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n".encode()


@pytest.mark.services
def test_a_real_broker_refuses_what_was_revoked(mosquitto_program):
    need(shutil.which("openssl"), "openssl is not installed (apt-get install openssl)")
    with tempfile.TemporaryDirectory(prefix="maxgreen-ca-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yard = Yard(folder)
        yard.register(Status.ACTIVE)
        assert run("server", "127.0.0.1", "--out", yard.out, "--dir", yard.ca).exit_code == 0
        devices = [lab.device.hex() for lab in yard.labs]
        for number, device in enumerate(devices):
            assert yard.sign(number, "--unregistered").exit_code == 0
            shutil.copy(yard.request(number).with_name("tls.key"), yard.out / f"{device}.key")
        (folder / "maxgreen").mkdir()
        certs = shutil.copytree(yard.out, folder / "maxgreen/certs")
        certs.chmod(0o755)
        if os.geteuid() == 0:
            shutil.chown(certs / "server.key", "mosquitto")
        port = free_port()

        def broker():
            shutil.copy(yard.ca / "crl.pem", certs / "crl.pem")
            text = (
                f"listener {port} 127.0.0.1\ncafile {certs}/ca.crt\ncertfile {certs}/server.crt\n"
                f"keyfile {certs}/server.key\ncrlfile {certs}/crl.pem\nrequire_certificate true\n"
                "use_identity_as_username true\nuse_username_as_clientid true\n"
            )
            (folder / "m.conf").write_text(text)
            log = folder / "log"
            process = subprocess.Popen([mosquitto_program, "-c", folder / "m.conf"], stderr=log.open("w"))
            wait_for(lambda: " running" in log.read_text() or process.poll() is not None, 30, "mosquitto")
            assert process.poll() is None, log.read_text()
            return process

        process = broker()
        for device in devices:
            Broker(folder, port, port).client(device).leave()
        assert run("revoke", devices[0], "--dir", yard.ca).exit_code == 0
        shutil.copy(yard.ca / "crl.pem", certs / "crl.pem")
        process.send_signal(signal.SIGHUP)  # what 'systemctl reload mosquitto' sends

        def refused():
            try:
                Broker(folder, port, port).client(devices[0], patience_s=3).leave()
            except (ssl.SSLError, ConnectionError, OSError, queue.Empty):
                return True
            return False

        wait_for(refused, 60, "the refusal of a revoked device")
        Broker(folder, port, port).client(devices[1]).leave()
        stop(process)


def shakes_hands(folder, name="ingest"):
    """A handshake of both sides in memory, as strict as RFC 5280 (Python 3.13's own default)."""
    ours = ssl.create_default_context(cafile=folder / "ca.crt")
    ours.verify_flags |= ssl.VERIFY_X509_STRICT
    ours.load_cert_chain(folder / f"{name}.crt", folder / f"{name}.key")
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=folder / "ca.crt")
    theirs.verify_mode = ssl.CERT_REQUIRED
    theirs.verify_flags |= ssl.VERIFY_X509_STRICT
    theirs.load_cert_chain(folder / "server.crt", folder / "server.key")
    pipes = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ours.wrap_bio(pipes[0], pipes[1], server_hostname="127.0.0.1")
    server = theirs.wrap_bio(pipes[1], pipes[0], server_side=True)
    done = set()
    for _ in range(10):
        for side in (client, server):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                continue
    return len(done) == 2


@pytest.mark.parametrize("maker", ["authority", "trial"])
def test_certificates_satisfy_a_strict_client(tmp_path, maker):
    if maker == "trial":
        need(shutil.which("openssl"), "openssl is not installed (apt-get install openssl)")
        subprocess.run(
            [ROOT / "broker_config/make-certs", tmp_path, "127.0.0.1", "ingest"], check=True, capture_output=True
        )
    else:
        assert run("init", "--dir", tmp_path / "ca").exit_code == 0
        assert run("server", "127.0.0.1", "--out", tmp_path, "--dir", tmp_path / "ca").exit_code == 0
        assert run("client", "ingest", "--out", tmp_path, "--dir", tmp_path / "ca").exit_code == 0
    assert shakes_hands(tmp_path)


def test_a_ledger_that_knows_nobody_revokes_nobody(yard, tmp_path):
    assert yard.sign().exit_code == 0
    empty = f"sqlite:///{tmp_path}/empty.db"
    open_engine(empty)
    for ledger in (empty, f"sqlite:///{tmp_path}/typo.db", ""):
        run("follow", "--ledger", ledger, "--dir", yard.ca)
        assert Authority(yard.ca).valid(yard.labs[0].device.hex()), ledger
    assert not (tmp_path / "typo.db").exists()


def test_what_was_issued_and_not_written_is_written_the_next_time(yard, tmp_path):
    assert yard.sign(0, "--days", 30).exit_code == 0
    (tmp_path / "file").write_text("")
    arguments = ("--ledger", yard.ledger, "--dir", yard.ca)
    assert run("renew", "--out", tmp_path / "file", *arguments).exit_code != 0
    assert run("renew", "--out", tmp_path / "good", *arguments).exit_code == 0
    assert (tmp_path / "good" / f"{yard.labs[0].device.hex()}.crt").exists()
    before = run("renew", "--out", tmp_path / "good", *arguments)
    assert before.output == ""  # nothing is left to do


def test_a_service_whose_certificate_is_lost_goes_on_with_its_key_and_odd_hosts_are_said(yard):
    assert run("client", "dapp", "--out", yard.out, "--dir", yard.ca).exit_code == 0
    key = (yard.out / "dapp.key").read_bytes()
    assert run("revoke", "dapp", "--dir", yard.ca).exit_code == 0
    assert run("client", "dapp", "--out", yard.out, "--dir", yard.ca).exit_code == 0
    assert (yard.out / "dapp.key").read_bytes() == key
    odd = run("server", "exämple.org", "--out", yard.out, "--dir", yard.ca)
    assert isinstance(odd.exception, UsageError)
    assert not (yard.out / "server.key").exists()
