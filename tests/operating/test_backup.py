"""Backup while the service writes, and restore after everything is gone; damaged, running, full, older."""

import json
import os
import random
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import select

from maxgreen.authority import Authority
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import open_engine
from maxgreen.ledger.schema import batches
from maxgreen.protocol.identity import device_topic
from simulator.lab import Lab
from tests.conftest import need, served
from tests.ingest.site import MAXGREEN, Site
from tests.services import free_port, mosquitto_server, stop, wait_for

pytestmark = pytest.mark.services


class Place:
    """A site with a running service, its settings, an authority and an evidence store."""

    def __init__(self, folder, url, broker_port):
        self.home = folder / "home"
        self.home.mkdir()
        self.site = Site(self.home, url, broker_port, [Lab(1)])
        self.lab = self.site.lab(1)
        self.settings = folder / "etc"
        self.settings.mkdir()
        self.ca = folder / "ca"
        Authority.create(self.ca, "test", 1)
        (self.settings / "settlement.toml").write_text(
            f'ledger = "{url}"\nevidence = "evidence"\nrpc = "http://127.0.0.1:1"\noperator_file = "operator.key"\n'
        )
        (self.home / "operator.key").write_text("11" * 32)
        (self.home / "operator.key").chmod(0o600)
        (self.settings / "dapp.toml").write_text(f'ledger = "{url}"\nevidence = "evidence"\n')
        self.objects = {f"segments/{k:02x}/{k:062x}": os.urandom(100 + k) for k in range(20)}
        for name, data in self.objects.items():
            path = self.home / "evidence" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self.target = folder / "backups"
        self.ledger = Path(url.removeprefix("sqlite:///"))

    def run(self, *command, status=0):
        done = subprocess.run([MAXGREEN, *command], capture_output=True, text=True, timeout=300)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def backup(self, *more, status=0):
        arguments = ("--settings", self.settings, "--ca", self.ca, "--home", self.home, "--json", *more)
        text = self.run("backup", self.target, *arguments, status=status)
        return json.loads(text) if status == 0 else text

    def restore(self, folder, *more, status=0):
        where = ("--settings", self.settings, "--ca", self.ca, "--home", self.home)
        return self.run("restore", folder, *where, *more, status=status)

    def publish(self, client, enough):
        """Send until it is enough."""
        while not enough.wait(0.02):
            message = self.lab.sign(self.lab.batch([(1, 1)]), network=self.site.network)
            client.publish(device_topic(self.lab.device, "batch"), message, qos=1)


@pytest.fixture
def place(tmp_path, ledger_url):
    with served(mosquitto_server(tmp_path)) as port:
        made = Place(tmp_path, ledger_url, port)
        if ledger_url.startswith("postgresql"):
            need(shutil.which("pg_dump"), "pg_dump is not installed (apt-get install postgresql-client)")
        yield made


def seqs(url):
    engine = open_engine(url)
    with engine.begin() as connection:
        found = sorted(connection.execute(select(batches.c.seq)).scalars())
    engine.dispose()
    return found


def drop(place):
    """Destroy everything but the backups, as a lost disk does."""
    if place.site.url.startswith("postgresql"):
        import psycopg

        server, _, name = place.site.url.replace("+psycopg", "").rpartition("/")
        place.site.engine.dispose()
        with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
            connection.execute(f"CREATE DATABASE {name}")
    for folder in (place.home, place.settings, place.ca):
        shutil.rmtree(folder)
        folder.mkdir()


def test_everything_that_is_lost_comes_back_and_devices_send_the_rest_again(place):
    port = free_port()
    place.site.subscribed("ingest")
    ingest = place.site.service(http=port)
    shutil.copy(place.home / "ingest.toml", place.settings / "ingest.toml")
    text = (place.settings / "ingest.toml").read_text()
    client = place.site.client("publisher")
    enough = threading.Event()
    sender = threading.Thread(target=place.publish, args=(client, enough))
    sender.start()
    try:
        wait_for(lambda: len(seqs(place.site.url)) > 20, 60, "the first batches")
        first = place.backup()
        assert first["new_objects"] == 20
        assert first["batches"] >= 20
        seen = len(seqs(place.site.url))
        wait_for(lambda: len(seqs(place.site.url)) > seen, 60, "more batches")
        time.sleep(1.1)  # a backup is named by its second
        second = place.backup()
        assert second["new_objects"] == 0  # the store's objects are copied once
        assert second["batches"] > first["batches"]
        seen = len(seqs(place.site.url))
        wait_for(lambda: len(seqs(place.site.url)) > seen, 60, "more batches")
        enough.set()
        sender.join()
        wait_for(lambda: len(seqs(place.site.url)) == place.lab.seq, 60, "all batches")
        refused = place.restore(second["folder"], status=78)
        assert "a service runs on this ledger (process" in refused
    finally:
        enough.set()
        stop(ingest)
        client.loop_stop()
    come_back(place, first, second, text)


def come_back(place, first, second, text):
    before = {path.name: path.read_bytes() for path in (place.home / "backend.pem", place.ca / "ca.key")}
    drop(place)
    place.restore(second["folder"], "--dry-run")
    assert not list(place.home.iterdir())
    text_said = place.restore(second["folder"])
    assert f"{second['batches']} batches" in text_said
    kept = seqs(place.site.url)
    assert kept == list(range(second["batches"]))  # one state: the first so many, and no hole
    assert {path.name: path.read_bytes() for path in (place.home / "backend.pem", place.ca / "ca.key")} == before
    assert (place.home / "backend.pem").stat().st_mode & 0o777 == 0o600
    if not place.site.url.startswith("postgresql"):
        assert place.ledger.stat().st_mode & 0o777 == 0o600
    assert (place.settings / "ingest.toml").read_text() == text
    assert {name: (place.home / "evidence" / name).read_bytes() for name in place.objects} == place.objects
    assert "whole" in place.run("ingest", "check", "-c", place.settings / "ingest.toml")
    Authority(place.ca)  # opens
    resend_the_rest(place, kept)
    if place.site.url.startswith("postgresql"):
        assert "restore into an empty one" in place.restore(second["folder"], status=78)
    else:
        place.restore(first["folder"])  # what is there is kept beside
        assert seqs(place.site.url) == list(range(first["batches"]))
        assert list(place.home.parent.rglob("ledger.db.before-restore"))


def resend_the_rest(place, kept):
    """A device keeps what its newest receipt does not cover, and sends it when the backend's is older than its own."""
    port = free_port()
    ingest = place.site.service_from(place.settings / "ingest.toml", "ingest")
    try:
        again = place.site.lab(1)
        client = place.site.client("publisher")
        for k in range(place.lab.seq):
            message = again.sign(again.batch([(1, 1)]), network=place.site.network)
            if k >= len(kept) - 5:  # some that it has, and all that it lacks
                client.publish(device_topic(again.device, "batch"), message, qos=1).wait_for_publish(30)
        wait_for(lambda: seqs(place.site.url) == list(range(place.lab.seq)), 60, "all batches again, once")
        client.loop_stop()
    finally:
        stop(ingest)
    assert port
    with open_engine(place.site.url).begin() as connection:
        assert Book(connection).state(again.device).next_seq == place.lab.seq


def test_a_damaged_backup_is_refused_and_an_old_one_forgotten(place):
    shutil.copytree(place.settings, place.settings.parent / "none", dirs_exist_ok=True)
    folders = []
    for _ in range(3):
        folders.append(Path(place.backup("--keep", "2")["folder"]))
        time.sleep(1.1)
    assert [folder.exists() for folder in folders] == [False, True, True]
    last = folders[-1]
    victim = random.Random(1).choice(
        [path for path in last.rglob("*") if path.is_file() and path.name != "manifest.json"]
    )
    data = bytearray(victim.read_bytes() or b"x")
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    assert "damaged or missing; take an older backup" in place.restore(last, status=78)
    assert "no backup" in place.restore(place.target / "nothing", status=78)
    for change in ({"/etc/../x": {"sha256": "", "mode": 0o600}}, {"x": {"sha256": "", "mode": 0o600}}):
        edited = folders[1].with_name("edited")
        shutil.copytree(folders[1], edited, dirs_exist_ok=True)
        manifest = json.loads((edited / "manifest.json").read_text())
        manifest["files"] |= change
        (edited / "manifest.json").write_text(json.dumps(manifest))
        assert "it names" in place.restore(edited, status=78)
    assert (place.target / "store").stat().st_mode & 0o077 == 0
    assert last.stat().st_mode & 0o077 == 0
    victim.write_bytes(b"")
    if place.site.url.startswith("postgresql"):
        return
    (place.home / "backend.pem").unlink()
    place.ledger.write_bytes(b"what a broken disk leaves")  # is put aside, and stops nothing
    place.ledger.with_name("ledger.db-wal").write_bytes(b"and this")
    place.restore(folders[1])
    assert list(place.ledger.parent.glob("ledger.db.before-restore*-wal"))
    assert not list(place.ledger.parent.glob("ledger.db-wal"))
    name = next(iter(place.objects))
    (place.target / "store" / name).write_bytes(b"xxx")
    assert "damaged or missing" in place.restore(folders[1], "--dry-run", status=78)
    shutil.rmtree(place.target / "store")
    assert "belongs to every backup" in place.restore(folders[1], status=78)
    (place.target / "2099-01-01T000000Z").mkdir()  # of a clock that was wrong
    (place.target / "movies.part").mkdir()
    newest = Path(place.backup("--keep", "1")["folder"])
    assert newest.exists()
    assert (place.target / "movies.part").exists()
    assert "name another folder" in place.run(
        "backup",
        place.home / "evidence/b",
        "--settings",
        place.settings,
        "--ca",
        place.ca,
        "--home",
        place.home,
        status=2,
    )


def test_no_password_is_an_argument_or_in_a_manifest():
    from sqlalchemy.engine import make_url

    from operating.layout import libpq

    for text in ("postgresql://u:SECRET@h:1/db", "postgresql+psycopg://u@h/db?password=SECRET&host=/run"):
        assert "SECRET" not in libpq(make_url(text))
        assert "***" not in libpq(make_url(text))


def test_a_backup_that_is_killed_is_none_and_the_next_one_cleans_up(place):
    if place.site.url.startswith("postgresql"):
        pytest.skip("the same code writes the folder of both databases")
    for after_s in (0.3, 0.6, 0.9, 1.2):
        process = subprocess.Popen(
            [MAXGREEN, "backup", place.target, "--settings", place.settings, "--ca", place.ca, "--home", place.home],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(after_s)
        process.kill()
        process.wait()
    time.sleep(1.1)
    done = Path(place.backup()["folder"])
    assert not list(place.target.glob("*.part"))
    assert (done / "manifest.json").exists()


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_paths_are_meant_where_the_command_is_given(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    where = ("--settings", "etc", "--ca", "ca", "--home", "home")
    made = json.loads(place.run("backup", "backups", *where, "--metrics", "figures", "--json"))
    assert Path(made["folder"]).parent == tmp_path / "backups"
    assert (tmp_path / "figures/maxgreen_backup.prom").exists()
    place.run("restore", f"backups/{Path(made['folder']).name}", *where, "--dry-run")
    done = subprocess.run(
        [MAXGREEN, "doctor", *where, "--backups", "backups", "--json"], capture_output=True, text=True
    )
    [found] = [one for one in json.loads(done.stdout)["findings"] if one["part"] == "backup"]
    assert found["state"] == "fine"
