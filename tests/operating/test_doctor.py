"""`maxgreen doctor` on a machine where all is well, and on one for each thing that is not."""

import json
import shutil
import subprocess

import pytest

from tests.conftest import served
from tests.ingest.site import MAXGREEN
from tests.operating.test_backup import Place
from tests.services import free_port, mosquitto_server, stop, wait_for

pytestmark = pytest.mark.services


@pytest.fixture
def place(tmp_path):
    with served(mosquitto_server(tmp_path)) as port:
        yield Place(tmp_path, f"sqlite:///{tmp_path}/home/ledger.db", port)


def examined(place, *more):
    arguments = ("--settings", place.settings, "--ca", place.ca, "--home", place.home, "--json", *more)
    done = subprocess.run([MAXGREEN, "doctor", *arguments], capture_output=True, text=True, timeout=120)
    found = json.loads(done.stdout)
    assert done.returncode == (1 if found["wrong"] else 0), done.stderr
    return found["findings"]


def wrong(found):
    return [one for one in found if one["state"] == "wrong"]


def test_a_running_site_is_well_and_each_trouble_is_named_with_its_cure(place):
    port = free_port()
    ingest = place.site.service(http=port)
    for name in ("settlement.toml", "dapp.toml"):
        (place.settings / name).unlink()
    shutil.copy(place.home / "ingest.toml", place.settings / "ingest.toml")
    settings = (place.settings / "ingest.toml").read_text()
    try:
        wait_for(lambda: "ok" in place.site.ready(port), 60, "readiness")
        place.backup()
        assert wrong(examined(place, "--backups", place.target)) == []
        parts = {one["part"] for one in examined(place, "--backups", place.target)}
        assert {
            "settings",
            "permissions",
            "broker",
            "ledger",
            "chain",
            "certificates",
            "disk",
            "services",
            "backup",
        } <= parts
        (place.home / "backend.pem").chmod(0o644)
        [found] = [one for one in wrong(examined(place)) if one["part"] == "permissions"]
        assert f"chmod 600 {place.home}/backend.pem" in found["cure"]
        (place.home / "backend.pem").chmod(0o600)
        broken = {
            "broker": settings.replace(f"port = {place.site.broker_port}", f"port = {free_port()}"),
            "settings": settings.replace("[chain]", '[influx]\nurl = "nonsense"\n[chain]'),
            "chain": settings.replace(f"{place.home}/deployment.json", f"{place.home}/other.json"),
            "view": settings + f'[influx]\nurl = "http://127.0.0.1:{free_port()}"\n',
            "services": settings.replace(f"port = {port}", f"port = {free_port()}"),
        }
        for part, text in broken.items():
            (place.settings / "ingest.toml").write_text(text)
            found = wrong(examined(place))
            assert part in {one["part"] for one in found}, (part, found)
            assert all(one["text"] for one in found)
        (place.settings / "ingest.toml").write_text(settings)
    finally:
        stop(ingest)
    assert any("does not answer" in one["text"] for one in wrong(examined(place)))


def test_a_machine_without_settings_is_told_so(tmp_path):
    done = subprocess.run(
        [MAXGREEN, "doctor", "--settings", tmp_path, "--home", tmp_path], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 78
    assert "there is no ingest.toml" in done.stderr
