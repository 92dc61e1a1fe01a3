"""Every key store passes the same suite: the file, SoftHSM's PKCS#11 token, and swtpm's TPM 2.0."""

import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from edge_agent.keystore import KeySettings, StoreName, make_store, reopening, store_of
from maxgreen.errors import Fatal, Retryable
from maxgreen.protocol.batch import parse_batch, sign_batch
from maxgreen.protocol.keys import HALF_ORDER, Verifier
from simulator.lab import NETWORK, Lab
from tests.conftest import free_port, need, stop, wait_for

SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")


@pytest.fixture
def softhsm(tmp_path, monkeypatch):
    need(shutil.which("softhsm2-util"), "SoftHSM is not installed (apt-get install softhsm2)")
    need(_imports("pkcs11"), "python-pkcs11 is not installed (pip install 'maxgreen[pkcs11]')")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm2.conf").write_text(f"directories.tokendir = {tmp_path}/tokens\nobjectstore.backend = file\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "softhsm2.conf"))
    subprocess.run(
        ["softhsm2-util", "--init-token", "--free", "--label", "maxgreen", "--pin", "1234", "--so-pin", "5678"],
        check=True, capture_output=True,
    )  # fmt: skip
    (tmp_path / "pin").write_text("1234\n")
    (tmp_path / "pin").chmod(0o600)
    import pkcs11

    if hasattr(pkcs11, "unload"):
        pkcs11.unload(str(SOFTHSM))  # it reads its configuration once
    return KeySettings(store=StoreName.PKCS11, pkcs11={"module": str(SOFTHSM), "pin_file": str(tmp_path / "pin")})


@pytest.fixture
def swtpm(tmp_path):
    need(shutil.which("swtpm"), "swtpm is not installed (apt-get install swtpm libtss2-tcti-swtpm0)")
    need(_imports("tpm2_pytss"), "tpm2-pytss is not installed (pip install 'maxgreen[tpm]')")
    port = free_port()
    (tmp_path / "tpm").mkdir()
    chip = Swtpm(tmp_path / "tpm", port)
    chip.start()
    yield KeySettings(store=StoreName.TPM, tpm={"tcti": f"swtpm:host=127.0.0.1,port={port}"}), chip
    chip.stop()


class Swtpm:
    """A TPM that can be taken away and brought back."""

    def __init__(self, folder, port):
        self.folder, self.port, self.process = folder, port, None

    def start(self):
        self.process = subprocess.Popen(
            ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.folder}", "--flags", "not-need-init,startup-clear",
             "--server", f"type=tcp,port={self.port},bindaddr=127.0.0.1", "--ctrl",
             f"type=tcp,port={self.port + 1},bindaddr=127.0.0.1"],
        )  # fmt: skip
        wait_for(lambda: _listens(self.port + 1), what="swtpm")

    def stop(self):
        stop(self.process)


@pytest.fixture(params=["file", "pkcs11", "tpm"])
def settings(request):
    if request.param == "pkcs11":
        return request.getfixturevalue("softhsm")
    return request.getfixturevalue("swtpm")[0] if request.param == "tpm" else KeySettings()


@pytest.mark.rule("P-ID-1", "P-SIG-1")
def test_a_key_is_made_once_signs_low_s_and_is_the_same_after_a_restart(settings, tmp_path):
    folder = tmp_path / "state"
    made = make_store(folder, settings, settings.store).create()
    found = store_of(folder, settings)
    signer = found.load()
    assert signer.spki == made.spki
    assert found.kind == list(StoreName).index(settings.store)
    verifier = Verifier(signer.spki)
    for k in range(20):
        signature = signer.sign(bytes([k]))
        assert verifier.verifies(bytes([k]), signature)
        assert int.from_bytes(signature[32:], "big") <= HALF_ORDER
    with pytest.raises(Fatal, match="never replaced"):
        found.create()
    files = [path for path in folder.iterdir() if path.is_file()]
    assert all(path.stat().st_mode & 0o077 == 0 for path in files)


def test_a_batch_signed_by_the_store_is_one_that_ingest_accepts(settings, tmp_path):
    signer = make_store(tmp_path / "state", settings, settings.store).create()
    batch = Lab().batch(birth=None)
    signed = parse_batch(sign_batch(batch, signer, NETWORK))
    signed.envelope.check(Verifier(signer.spki), NETWORK, "batch")


@pytest.mark.rule("P-ID-1")
def test_a_reference_that_others_can_read_is_refused(settings, tmp_path):
    folder = tmp_path / "state"
    make_store(folder, settings, settings.store).create()
    next(folder.iterdir()).chmod(0o644)
    with pytest.raises(Fatal, match="chmod 600"):
        store_of(folder, settings).load()


def away_and_back(signer, monkeypatch, take_away, bring_back):
    monkeypatch.setattr(reopening, "AGAIN_S", 0.0)
    verifier = Verifier(signer.spki)
    assert verifier.verifies(b"1", signer.sign(b"1"))
    take_away()
    for _ in range(3):
        with pytest.raises(Retryable):
            signer.sign(b"2")
    bring_back()
    wait_for(lambda: verifier.verifies(b"3", signs(signer, b"3")), seconds=10, what="a signature")


def signs(signer, message):
    try:
        return signer.sign(message)
    except Retryable:
        return bytes(64)


def test_a_token_that_was_away_signs_again(softhsm, tmp_path, monkeypatch):
    import pkcs11

    signer = make_store(tmp_path / "state", softhsm, StoreName.PKCS11).create()

    def take_away():
        (tmp_path / "tokens").rename(tmp_path / "elsewhere")
        (tmp_path / "tokens").mkdir()
        pkcs11.lib(str(SOFTHSM)).reinitialize()

    def bring_back():
        (tmp_path / "tokens").rmdir()
        (tmp_path / "elsewhere").rename(tmp_path / "tokens")

    away_and_back(signer, monkeypatch, take_away, bring_back)


def test_a_tpm_that_was_away_signs_again(swtpm, tmp_path, monkeypatch):
    settings, chip = swtpm
    signer = make_store(tmp_path / "state", settings, StoreName.TPM).create()
    away_and_back(signer, monkeypatch, chip.stop, chip.start)


def test_a_key_that_is_away_is_looked_for_once_a_second():
    class Key:
        spki = b"k"

        def sign_digest(self, digest):
            raise Retryable("gone")

        def close(self):
            pass

    opened = []

    def open_key():
        opened.append(1)
        if len(opened) > 1:
            raise Retryable("not there")
        return Key()

    signer = reopening.ReopeningSigner(open_key)
    for _ in range(1_000):
        with pytest.raises(Retryable, match="not there"):
            signer.sign(b"")
    assert len(opened) == 2


def test_a_token_that_is_not_there_is_said_with_its_name(softhsm, tmp_path):
    wrong = softhsm.model_copy(update={"pkcs11": {**softhsm.pkcs11, "token": "another"}})
    with pytest.raises(Retryable, match=r"'another'.*\[key.pkcs11\]"):
        make_store(tmp_path / "state", wrong, StoreName.PKCS11).create()


def test_a_tpm_that_is_not_there_is_said_with_its_address(tmp_path):
    need(_imports("tpm2_pytss"), "tpm2-pytss is not installed (pip install 'maxgreen[tpm]')")
    absent = KeySettings(store=StoreName.TPM, tpm={"tcti": f"swtpm:host=127.0.0.1,port={free_port()}"})
    with pytest.raises(Retryable, match=r"TPM swtpm.*\[key.tpm\]"):
        make_store(tmp_path / "state", absent, StoreName.TPM).create()


def _listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _imports(name):
    import importlib.util

    found = importlib.util.find_spec(name)
    return found and found.origin


def test_the_pin_never_stands_in_an_error(softhsm, tmp_path):
    Path(softhsm.pkcs11["pin_file"]).write_text("9876")
    with pytest.raises(Fatal) as caught:
        make_store(tmp_path / "state", softhsm, StoreName.PKCS11).create()
    assert "9876" not in str(caught.value)
