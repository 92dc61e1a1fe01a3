"""Every key store passes the same suite: the file, SoftHSM's PKCS#11 token, and swtpm's TPM 2.0."""

import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from edge_agent.keystore import KeySettings, StoreName, make_store, store_of
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
    process = subprocess.Popen(
        ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={tmp_path}/tpm", "--flags", "not-need-init,startup-clear",
         "--server", f"type=tcp,port={port},bindaddr=127.0.0.1", "--ctrl",
         f"type=tcp,port={port + 1},bindaddr=127.0.0.1"],
    )  # fmt: skip
    wait_for(lambda: _listens(port + 1), what="swtpm")
    yield KeySettings(store=StoreName.TPM, tpm={"tcti": f"swtpm:host=127.0.0.1,port={port}"})
    stop(process)


@pytest.fixture(params=["file", "pkcs11", "tpm"])
def settings(request):
    fixtures = {"pkcs11": "softhsm", "tpm": "swtpm"}
    return request.getfixturevalue(fixtures[request.param]) if request.param in fixtures else KeySettings()


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
