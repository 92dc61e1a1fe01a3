"""Keys change hands: rotation and recovery end the same, wherever they are cut off (field 14, event 6)."""

import hashlib
import json
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from edge_agent import identity as identity_module
from edge_agent.compose import build_agent
from edge_agent.config import AgentSettings, ChannelSettings
from edge_agent.identity import SPOOL, Identities
from edge_agent.keystore import KeySettings
from edge_agent.recovery import recovered
from edge_agent.spool import Spool
from maxgreen.errors import Fatal, UsageError
from maxgreen.keyfile import load_key_file
from maxgreen.protocol.backend import Receipt, sign_receipt
from maxgreen.protocol.batch import EventKind, parse_batch
from maxgreen.protocol.cose import network_digest
from maxgreen.protocol.keys import key_id
from simulator.lab import NETWORK, T0_MS, Lab
from tests.edge_agent.test_agent import BACKEND, make_sealer, ticks

GENESIS = network_digest(NETWORK)


def messages(path):
    spool = Spool(path, GENESIS)
    found = [message for _, message in spool.messages(0, 1_000)]
    tip, predecessor = spool.tip, spool.predecessor
    spool.close()
    return found, tip, predecessor


@pytest.fixture
def device(tmp_path):
    """A device that measured a minute with its first key: (identities, device id)."""
    identities = Identities(tmp_path, KeySettings())
    signer = identities.make()
    spool = Spool(tmp_path / SPOOL, GENESIS)
    sealer = make_sealer(spool)
    sealer._signer, sealer._birth = signer, replace(Lab().birth, spki=signer.spki)
    for tick in ticks(0, 61):
        sealer.take(tick)
    sealer.stop()
    spool.close()
    return identities, key_id(signer.spki)


def finish(identities, second=100):
    """Let the key in use have its last batch, as a running agent does."""
    spool = Spool(identities.folder / SPOOL, GENESIS)
    sealer = make_sealer(spool)
    sealer._signer = identities.signer()
    sealer._birth = replace(Lab().birth, spki=sealer._signer.spki)
    sealer.take(next(ticks(second, 1)))
    assert sealer.finish_key(second * 1000 + 60_000)
    sealer.take(next(ticks(second + 1, 1)))  # nothing is measured with a closed key
    head = sealer.tip.head
    spool.close()
    return head


@pytest.mark.rule("P-ATT-1")
def test_a_rotation_closes_the_old_chain_and_the_new_one_names_its_head(device):
    identities, old = device
    prepared = identities.prepare()
    assert identities.prepare().spki == prepared.spki
    assert not identities.switch(GENESIS)
    identities.confirm()
    assert not identities.switch(GENESIS)
    head = finish(identities)
    assert identities.switch(GENESIS)
    assert identities.signer().spki == prepared.spki
    assert not identities.is_confirmed
    folder = identities.old_folder(old)
    assert identities.retired() == [(old, folder, folder / SPOOL)]
    last, tip, _ = messages(folder / SPOOL)
    batch = parse_batch(last[-1]).batch
    assert tip.closed
    assert EventKind.LAST_OF_KEY in {event.kind for event in batch.events}
    assert {attestation.channel for attestation in batch.attestations} == {0, 1}
    spool = Spool(identities.folder / SPOOL, GENESIS)
    sealer = make_sealer(spool)
    sealer._signer, sealer._birth = prepared, replace(Lab().birth, spki=prepared.spki)
    sealer.take(next(ticks(200, 1)))
    first = parse_batch(spool.messages(0, 1)[0][1]).batch
    assert (first.seq, first.prev, first.succeeds) == (0, GENESIS, (old, head))
    assert first.channels[0].register_mws == 0
    spool.close()


def test_a_rotation_is_not_confirmed_before_a_key_is_prepared(device):
    with pytest.raises(Fatal, match="agent rotate"):
        device[0].confirm()


class PowerCutError(Exception):
    """The power went."""


@pytest.mark.parametrize("damaged", [False, True])
def test_a_change_of_keys_that_is_cut_off_anywhere_ends_the_same(device, tmp_path_factory, monkeypatch, damaged):
    identities, old = device
    prepared = identities.prepare()
    if damaged:
        head = b"h" * 32
        begin = lambda found: found.replace_damaged(head, GENESIS)  # noqa: E731
    else:
        identities.confirm()
        head = finish(identities)
        begin = lambda found: found.switch(GENESIS)  # noqa: E731
    step = 0
    while True:
        step += 1
        folder = tmp_path_factory.mktemp("cut") / "state"
        shutil.copytree(identities.folder, folder, copy_function=shutil.copy2)
        found, left = Identities(folder, KeySettings()), [step]

        def cut(original, left=left):
            def call(*arguments, **options):
                left[0] -= 1
                if left[0] == 0:
                    raise PowerCutError
                return original(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", cut(Path.rename))
            patch.setattr(Path, "replace", cut(Path.replace))
            patch.setattr(Path, "unlink", cut(Path.unlink))
            patch.setattr(identity_module, "sync_folder", cut(identity_module.sync_folder))
            try:
                begin(found)
                whole = True
            except PowerCutError:
                whole = False
        again = Identities(folder, KeySettings())
        if damaged and not (folder / "rotation.json").exists() and key_id(again.signer().spki) == old:
            again.replace_damaged(head, GENESIS)
        else:
            again.switch(GENESIS)
        assert again.signer().spki == prepared.spki
        found_messages, tip, predecessor = messages(folder / SPOOL)
        assert (found_messages, tip.next_seq, predecessor) == ([], 0, (old, head))
        kept = folder / "old" / old.hex()
        assert key_id(load_key_file(kept / "signing.pem").spki) == old
        assert messages(kept / SPOOL)[0] == messages(identities.folder / SPOOL)[0]
        assert again.retired() == ([] if damaged else [(old, kept, kept / SPOOL)])
        assert not (folder / "next").exists()
        if whole:
            break
    assert step > 10


def test_the_agent_and_its_commands_end_a_change_of_keys_that_was_cut_off(device, tmp_path_factory, monkeypatch):
    identities, old = device
    prepared = identities.prepare()
    identities.confirm()
    finish(identities)
    with monkeypatch.context() as patch:
        patch.setattr(identity_module.shutil, "rmtree", _cut)
        patch.setattr(Path, "rename", _cut_at(4, Path.rename))
        with pytest.raises(PowerCutError):
            identities.switch(GENESIS)
    for start in (_build, lambda s: recovered(s, lambda _device: None), lambda s: Identities(s.state_dir, s.key).make(),
                  lambda s: Identities(s.state_dir, s.key).prepare()):  # fmt: skip
        folder = tmp_path_factory.mktemp("cut") / "state"
        shutil.copytree(identities.folder, folder)
        settings = AgentSettings(
            network=NETWORK, backend_keys=(BACKEND.spki.hex(),), state_dir=folder, channels=(ChannelSettings(),)
        )
        assert not [fault for fault in settings.faults() if "key" in fault]
        with suppress(UsageError, FileExistsError, Fatal):  # it is in order, a key is there
            start(settings)
        found = Identities(folder, KeySettings())
        assert found.signer().spki == prepared.spki
        assert [one[0] for one in found.retired()] == [old]


def _build(settings):
    build_agent(settings).close()


def _cut(*_arguments, **_options):
    raise PowerCutError


def _cut_at(calls, original):
    left = [calls]

    def call(*arguments):
        left[0] -= 1
        return original(*arguments) if left[0] else _cut()

    return call


def test_a_damaged_spool_of_an_earlier_key_does_not_stop_the_one_in_use(device, caplog):
    identities, old = device
    identities.prepare()
    identities.confirm()
    finish(identities)
    identities.switch(GENESIS)
    (identities.old_folder(old) / SPOOL).write_bytes(b"nothing")
    settings = AgentSettings(
        network=NETWORK, backend_keys=(BACKEND.spki.hex(),), state_dir=identities.folder, channels=(ChannelSettings(),)
    )
    agent = build_agent(settings)
    assert [alarm.code for alarm in agent.report.alarms if alarm.code == "earlier_key"]
    agent.close()
    assert "an earlier key's" in caplog.text


def test_a_spool_that_is_gone_or_damaged_invents_no_registers_and_names_the_cure(device):
    identities, _ = device
    path = identities.folder / SPOOL
    data = bytearray(path.read_bytes())
    data[4096:12288] = os.urandom(8192)
    path.write_bytes(bytes(data))
    with pytest.raises(Fatal, match="damaged.*maxgreen agent recover"):
        Spool(path, GENESIS)
    path.unlink()
    with pytest.raises(Fatal, match="gone.*maxgreen agent recover"):
        Spool(path, GENESIS)
    assert not path.exists()


CONFIG = """
network = "{network}"
backend_keys = ["{backend}"]
state_dir = "{state}"
metrics_port = 0
[broker]
port = 1
[work]
enabled = false
"""


def test_one_command_recovers_from_a_damaged_spool_with_the_last_receipt(device, tmp_path_factory, capsys):
    from typer.testing import CliRunner

    from edge_agent.cli import app

    identities, old = device
    folder = tmp_path_factory.mktemp("config")
    text = CONFIG.format(network=NETWORK, backend=BACKEND.spki.hex(), state=identities.folder)
    (folder / "agent.toml").write_text(text)
    sent = messages(identities.folder / SPOOL)[0]
    head = hashlib.sha256(sent[1]).digest()
    (folder / "receipt").write_bytes(sign_receipt(Receipt(old, 2, head, T0_MS, 7), BACKEND, NETWORK))
    other = sign_receipt(Receipt(bytes(16), 2, head, T0_MS, 7), BACKEND, NETWORK)
    (folder / "other").write_bytes(other)
    arguments = ["--config", str(folder / "agent.toml"), "--json"]
    runner = CliRunner()
    sound = runner.invoke(app, ["recover", *arguments, "--receipt", str(folder / "receipt")])
    assert "in order" in str(sound.exception)
    (identities.folder / SPOOL).write_bytes(b"not a database" * 1_000)
    wrong = runner.invoke(app, ["recover", *arguments, "--receipt", str(folder / "other")])
    assert "is for device" in str(wrong.exception)
    done = runner.invoke(app, ["recover", *arguments, "--receipt", str(folder / "receipt")])
    assert done.exit_code == 0, done.exception
    made = json.loads(done.stdout)
    assert made["device"] == key_id(identities.signer().spki).hex() != old.hex()
    assert messages(identities.folder / SPOOL)[2] == (old, head)
    evidence = identities.folder / "old" / old.hex() / SPOOL
    assert evidence.read_bytes().startswith(b"not a database")
    shown = runner.invoke(app, ["status", *arguments])
    assert json.loads(shown.stdout)["seq"] == 0


def test_the_keys_of_a_device_never_show_in_what_its_commands_print(device, tmp_path_factory):
    from typer.testing import CliRunner

    from edge_agent.cli import app

    identities, _ = device
    config = tmp_path_factory.mktemp("config") / "agent.toml"
    config.write_text(CONFIG.format(network=NETWORK, backend=BACKEND.spki.hex(), state=identities.folder))
    secret = (identities.folder / "signing.pem").read_text().splitlines()[1]
    said = ""
    system = config.with_name("system.toml")
    system.write_text('kind = "miner"\n[[channels]]\nnumber = 1\nrole = "sent"\npeak_w = 100\n')
    prove = ["prove", "0x" + "1" * 40, "--next", "--system", str(system)]
    for arguments in (["rotate"], ["rotate", "--json"], prove, ["status"]):
        done = CliRunner().invoke(app, [*arguments, "--config", str(config)])
        assert done.exit_code == 0, done.exception
        said += done.output
    assert secret not in said
    assert "PRIVATE" not in said
    modes = {path.stat().st_mode & 0o077 for path in identities.folder.rglob("*") if path.suffix in {".pem", ".key"}}
    assert modes == {0}


def test_a_new_device_takes_the_place_of_a_lost_one_by_its_last_receipt(tmp_path):
    from typer.testing import CliRunner

    from edge_agent.cli import app

    (tmp_path / "agent.toml").write_text(
        CONFIG.format(network=NETWORK, backend=BACKEND.spki.hex(), state=tmp_path / "state")
    )
    old, head = b"o" * 16, b"h" * 32
    (tmp_path / "receipt").write_bytes(sign_receipt(Receipt(old, 9, head, T0_MS, 7), BACKEND, NETWORK))
    arguments = ["replace", "--config", str(tmp_path / "agent.toml"), "--receipt", str(tmp_path / "receipt"), "--json"]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.exception
    again = CliRunner().invoke(app, arguments)  # cut off and repeated
    assert json.loads(again.stdout) == json.loads(first.stdout)
    assert messages(tmp_path / "state" / SPOOL)[2] == (old, head)
    (tmp_path / "receipt").write_bytes(sign_receipt(Receipt(b"x" * 16, 9, head, T0_MS, 7), BACKEND, NETWORK))
    other = CliRunner().invoke(app, arguments)
    assert "another's place" in str(other.exception)
    (tmp_path / "receipt").write_bytes(b"no receipt")
    wrong = CliRunner().invoke(app, arguments)
    assert "receipt" in str(wrong.exception)
