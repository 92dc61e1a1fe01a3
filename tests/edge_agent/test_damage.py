"""A medium that changes what lies on it: nothing changed is ever sent or built on, and what is whole is kept."""

import hashlib
import os
import random
import shutil
import sqlite3
import time
from collections import Counter
from contextlib import closing
from dataclasses import replace

import pytest

from edge_agent import salvage
from edge_agent import spool as spool_module
from edge_agent.chain_tip import encode_tip
from edge_agent.config import AgentSettings, ChannelSettings
from edge_agent.identity import SALVAGED, Identities
from edge_agent.keystore import KeySettings
from edge_agent.recovery import recovered
from edge_agent.spool import DamagedError, MediumError, Spool, row_digest
from maxgreen.errors import Fatal, UsageError
from maxgreen.protocol.backend import Receipt, sign_receipt
from maxgreen.protocol.cose import network_digest
from maxgreen.protocol.keys import key_id
from simulator.lab import NETWORK, T0_MS
from tests.edge_agent.test_agent import BACKEND, make_sealer, ticks

GENESIS = network_digest(NETWORK)
DAMAGES = int(os.environ.get("MAXGREEN_DAMAGES", "120"))
RECEIPTED = 40


class Site:
    """A state folder whose spool holds 300 batches, and what is known of them."""

    def __init__(self, folder, *, clean=True):
        self.folder = folder
        identities = Identities(folder, KeySettings())
        signer = identities.make()
        self.device = key_id(signer.spki)
        spool = Spool(folder / "spool.db", GENESIS)
        sealer = make_sealer(spool, seal_ms=10_000)
        for tick in ticks(0, 3_000):
            sealer.take(tick)
        spool.obey(7)
        self.good = dict(spool.messages(0, 10_000))
        self.tip = spool.tip
        head = hashlib.sha256(self.good[RECEIPTED - 1]).digest()
        self.receipt = Receipt(self.device, RECEIPTED, head, T0_MS + 10**7, 7)
        spool.receipted(self.receipt, sign_receipt(self.receipt, BACKEND, NETWORK))
        self._open = None if clean else spool  # a connection that is collected would take the write-ahead log away
        if clean:
            spool.close()

    def settings(self, folder):
        return AgentSettings(
            network=NETWORK, backend_keys=(BACKEND.spki.hex(),), state_dir=folder, channels=(ChannelSettings(),)
        )

    def read(self, path):
        """Return the whole batches of a spool, as an uplink finds them, and how many are not."""
        spool, found, lost, seq = Spool(path, GENESIS), {}, 0, None
        try:
            seq = spool.oldest_seq()
            while seq < spool.tip.next_seq:
                try:
                    found |= dict(spool.messages(seq, 1))
                except DamagedError:
                    lost += 1
                seq += 1
            return spool.tip, found, lost, spool.obeyed()
        finally:
            spool.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return Site(tmp_path_factory.mktemp("site"))


def damage(path, chance):
    data = bytearray(path.read_bytes())
    kind = chance.choice(["bit", "bit", "bit", "block", "block", "truncated", "empty", "gone"])
    if kind == "bit":
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif kind == "block":
        size = chance.choice([512, 4_096, 65_536])
        at = chance.randrange(0, len(data), size)
        filling = chance.choice([b"\0", b"\xff", None])
        data[at : at + size] = chance.randbytes(size) if filling is None else filling * size
    elif kind == "truncated":
        del data[chance.randrange(len(data)) :]
    elif kind == "empty":
        data.clear()
    path.write_bytes(bytes(data))
    if kind == "gone":
        path.unlink()
    return kind


def test_of_random_damages_none_is_silent_and_what_is_whole_is_kept(site, tmp_path):
    outcomes, begun_ms = Counter(), int(time.time() * 1000)
    for seed in range(DAMAGES):
        folder = tmp_path / "state"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(site.folder, folder)
        path = folder / "spool.db"
        chance = random.Random(seed)
        victim = path if chance.random() < 0.95 else folder / "spool.db.begun"
        kind = damage(victim, chance)
        if victim is not path and kind == "gone":
            continue  # the mark is made again
        try:
            tip, found, lost, obeyed = site.read(path)
            assert tip == site.tip, seed
            assert obeyed == 7, seed
            assert all(site.good[seq] == message for seq, message in found.items()), seed
            outcomes[kind, "runs", lost > 0] += 1
        except (Fatal, MediumError) as error:
            assert "maxgreen agent recover" in str(error) or isinstance(error, MediumError), seed  # noqa: PT017
            outcomes[kind, "stops", True] += 1
        try:
            signer, said = recovered(site.settings(folder), lambda _device: site.receipt)
        except UsageError:
            outcomes[kind, "in order", False] += 1
            continue
        assert said
        tip, found, lost, obeyed = site.read(path)
        assert lost == 0 or key_id(signer.spki) == site.device
        assert all(site.good[seq] == message for seq, message in found.items()), seed
        if key_id(signer.spki) == site.device:
            assert tip == site.tip, seed
            assert obeyed == 7 or obeyed >= begun_ms, seed  # no command that was obeyed is obeyed again
            assert kind != "bit" or len(found) >= len(site.good) - 1, (seed, len(found))
            outcomes[kind, "same key", len(found) == len(site.good)] += 1
            continue
        outcomes[kind, "new key", True] += 1
        assert tip.next_seq == 0
        spool = Spool(path, GENESIS)
        end = RECEIPTED
        salvaged = folder / "old" / site.device.hex() / SALVAGED / "spool.db"
        if salvaged.exists():
            kept = dict(Spool(salvaged, GENESIS).messages(RECEIPTED, 10_000))
            end += len(kept)
            assert kept == {seq: site.good[seq] for seq in range(RECEIPTED, end)}, seed
        assert spool.predecessor == (site.device, hashlib.sha256(site.good[end - 1]).digest()), seed
        spool.close()
    print(sorted(outcomes.items()))
    assert outcomes["bit", "runs", True] + outcomes["bit", "stops", True] > DAMAGES / 10, outcomes
    assert any(what == "same key" for _, what, _ in outcomes)


def test_a_recovery_that_is_killed_anywhere_ends_the_same(site, tmp_path, monkeypatch):
    """Every file operation of a recovery is its last one once; the next recovery goes on from there."""
    step, ended = 0, False
    while not ended:
        step += 1
        folder = tmp_path / "state"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(site.folder, folder)
        path = folder / "spool.db"
        data = bytearray(path.read_bytes())
        at = data.find(site.good[100])
        data[at + 50] ^= 1
        data[at + 5_000 : at + 5_100] = bytes(100)
        path.write_bytes(bytes(data))
        left = [step]

        def counted(name, original, left=left):
            def call(*arguments, **options):
                left[0] -= 1
                if left[0] == 0:
                    raise PowerCutError
                return original(*arguments, **options)

            return call

        with monkeypatch.context() as cut:
            for module, name in (
                (salvage, "_copy"),
                (salvage, "write_durably"),
                (salvage, "sync_folder"),
                (salvage.shutil, "rmtree"),
                (salvage.Path, "unlink"),
                (salvage.Path, "replace"),
                (salvage.Path, "mkdir"),
            ):
                cut.setattr(module, name, counted(name, getattr(module, name)))
            try:
                recovered(site.settings(folder), lambda _device: site.receipt)
                ended = True
            except PowerCutError:
                pass
        if not ended:
            try:
                Spool(path, GENESIS).close()
            except DamagedError:
                recovered(site.settings(folder), lambda _device: site.receipt)
        tip, found, _, _ = site.read(path)
        assert tip == site.tip, step
        assert set(site.good) - set(found) <= set(range(95, 115)), step
        assert all(site.good[seq] == message for seq, message in found.items()), step
    assert step > 8


class PowerCutError(Exception):
    """The power went."""


def test_an_empty_file_beside_its_mark_begins_no_new_chain(site, tmp_path):
    folder = tmp_path / "state"
    shutil.copytree(site.folder, folder)
    (folder / "spool.db").write_bytes(b"")
    with pytest.raises(DamagedError, match="gone or empty.*maxgreen agent recover"):
        Spool(folder / "spool.db", GENESIS)


def test_a_fresh_file_in_the_place_of_the_begun_one_is_refused(site, tmp_path):
    folder = tmp_path / "state"
    shutil.copytree(site.folder, folder)
    Spool(tmp_path / "other" / "spool.db", GENESIS).close()
    shutil.copy(tmp_path / "other" / "spool.db", folder / "spool.db")
    with pytest.raises(DamagedError, match="not the file that was begun here"):
        Spool(folder / "spool.db", GENESIS)


def test_a_spool_whose_receipt_tells_another_history_gets_a_new_key(site, tmp_path):
    folder = tmp_path / "state"
    shutil.copytree(site.folder, folder)
    ahead = Receipt(site.device, 500, b"h" * 32, T0_MS, 7)
    signer, said = recovered(site.settings(folder), lambda _device: ahead)
    assert key_id(signer.spki) != site.device
    assert "another history" in said
    assert Spool(folder / "spool.db", GENESIS).predecessor == (site.device, b"h" * 32)
    again = tmp_path / "again"
    shutil.copytree(site.folder, again)
    with pytest.raises(UsageError, match="in order"):
        recovered(site.settings(again), lambda _device: site.receipt)
    with pytest.raises(UsageError, match="in order"):
        recovered(site.settings(again), lambda _device: None)


def test_lost_registers_without_any_receipt_are_said(site, tmp_path):
    folder = tmp_path / "state"
    shutil.copytree(site.folder, folder)
    (folder / "spool.db").unlink()
    with pytest.raises(Fatal, match="--receipt FILE"):
        recovered(site.settings(folder), lambda _device: None)
    assert "new key" in recovered(site.settings(folder), lambda _device: site.receipt)[1]


def test_a_damaged_log_of_the_last_writes_is_found_too(tmp_path):
    """After a power cut the write-ahead log lies beside the file; what it loses is not what a receipt covers."""
    site = Site(tmp_path / "site", clean=False)
    outcomes = set()
    for seed in range(30):
        folder = tmp_path / f"k{seed}"
        shutil.copytree(site.folder, folder)
        chance = random.Random(seed)
        damage(folder / "spool.db-wal", chance)
        try:
            tip, found, _, _ = site.read(folder / "spool.db")
        except DamagedError:
            outcomes.add("stops")
            continue
        assert all(site.good[seq] == message for seq, message in found.items())
        outcomes.add(tip == site.tip)
    assert outcomes


def test_what_is_lost_is_said_in_spans():
    found = salvage.Found(None, None, (1, 2, 3, 7, 9, 10))
    assert "lost: 6 batches, 1 to 3, 7, 9 to 10" in salvage.explain(found)


@pytest.mark.parametrize("fact", ["tip", "command", "predecessor", "spool"])
def test_a_fact_that_is_gone_is_a_damage_and_not_a_fresh_start(site, tmp_path, fact):
    folder = tmp_path / "state"
    shutil.copytree(site.folder, folder)
    with closing(sqlite3.connect(folder / "spool.db")) as db:
        db.execute("DELETE FROM facts WHERE name = ?", (fact,))
        db.execute("DELETE FROM batches")
        db.commit()
    with pytest.raises(DamagedError):
        Spool(folder / "spool.db", GENESIS)


def test_the_facts_have_no_index_that_could_hide_one_or_keep_an_older_one(site):
    with closing(sqlite3.connect(site.folder / "spool.db")) as db:
        assert db.execute("SELECT 1 FROM sqlite_master WHERE type = 'index' AND tbl_name = 'facts'").fetchone() is None


@pytest.mark.parametrize("doubled", [False, True])
def test_registers_that_the_medium_took_back_are_not_built_on(site, tmp_path, monkeypatch, doubled):
    """A page of an earlier write: the facts are those of some batches ago."""
    monkeypatch.setattr(spool_module, "_CHECKED_WHOLE", 0)  # as for a spool that is too large to be read through
    folder = tmp_path / "state"
    shutil.copytree(site.folder, folder)
    earlier = encode_tip(replace(site.tip, next_seq=200, head=hashlib.sha256(site.good[199]).digest()))
    with closing(sqlite3.connect(folder / "spool.db")) as db:
        if not doubled:
            db.execute("DELETE FROM facts WHERE name = 'tip'")
        db.execute("INSERT INTO facts VALUES ('tip', ?, ?)", (earlier, row_digest("tip", earlier)))
        db.commit()
    with pytest.raises(DamagedError):
        Spool(folder / "spool.db", GENESIS)
    signer, said = recovered(site.settings(folder), lambda _device: site.receipt)
    assert key_id(signer.spki) != site.device
    assert f"whole and will be delivered: {len(site.good) - RECEIPTED}" in said
    kept = dict(Spool(folder / "old" / site.device.hex() / SALVAGED / "spool.db", GENESIS).messages(RECEIPTED, 10_000))
    assert kept == {seq: message for seq, message in site.good.items() if seq >= RECEIPTED}


def test_without_registers_a_damaged_key_of_a_batch_hides_no_other(site, tmp_path):
    folder = tmp_path / "state"
    shutil.copytree(site.folder, folder)
    with closing(sqlite3.connect(folder / "spool.db")) as db:
        db.execute("DELETE FROM facts WHERE name = 'tip'")
        db.execute("UPDATE batches SET seq = seq + ? WHERE seq = ?", (2**40, site.tip.next_seq - 1))
        db.commit()
    recovered(site.settings(folder), lambda _device: site.receipt)
    kept = dict(Spool(folder / "old" / site.device.hex() / SALVAGED / "spool.db", GENESIS).messages(RECEIPTED, 10_000))
    assert len(kept) >= site.tip.next_seq - RECEIPTED - 1


def test_a_successor_that_forgot_whom_it_follows_is_not_begun_as_a_first_key(tmp_path):
    folder = tmp_path / "state"
    Identities(folder, KeySettings()).succeed(b"d" * 16, b"h" * 32, GENESIS)
    with closing(sqlite3.connect(folder / "spool.db")) as db:
        db.execute("UPDATE facts SET value = x'00' WHERE name = 'predecessor'")
        db.commit()
    settings = Site.settings(None, folder)
    with pytest.raises(Fatal, match="--receipt"):
        recovered(settings, lambda _device: None)


def test_a_receipt_of_another_type_is_none(site, tmp_path):
    folder = tmp_path / "state"
    shutil.copytree(site.folder, folder)
    with closing(sqlite3.connect(folder / "spool.db")) as db:
        db.execute("UPDATE receipts SET message = 12345678901234")
        db.commit()
    spool = Spool(folder / "spool.db", GENESIS)
    assert spool.last_receipt() is None
    spool.close()


def test_a_batch_that_cannot_be_read_does_not_hide_those_before_it(site, tmp_path):
    folder = tmp_path / "state"
    shutil.copytree(site.folder, folder)
    with closing(sqlite3.connect(folder / "spool.db")) as db:
        db.execute("UPDATE batches SET message = 17 WHERE seq = 5")
        db.execute("UPDATE batches SET message = 'text' WHERE seq = 7")
        db.commit()
    spool = Spool(folder / "spool.db", GENESIS)
    assert [seq for seq, _ in spool.messages(0, 20)] == [0, 1, 2, 3, 4]
    for seq in (5, 7):
        with pytest.raises(DamagedError) as caught:
            spool.messages(seq, 20)
        assert caught.value.seq == seq
        assert spool.digest(seq) is None
    spool.close()
    _, said = recovered(site.settings(folder), lambda _device: site.receipt)
    assert "lost: 2 batches, 5, 7" in said
