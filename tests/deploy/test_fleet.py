"""`maxgreen simulate fleet`: a fleet to look at, on the real InfluxDB and Mosquitto, with something of every trouble."""

import json
import os
import signal
import subprocess
import time
import urllib.request

import pytest

from ingest.config import InfluxSettings
from ingest.view.compare import asker, compare
from ingest.view.projector import running
from maxgreen.ledger.engine import open_engine
from tests.conftest import served
from tests.ingest.site import MAXGREEN
from tests.ingest.test_views import query
from tests.services import free_port, influx_server, mosquitto_server, wait_for

pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]


def test_a_fleet_fills_everything_and_goes_on_while_it_is_looked_at(tmp_path):
    with served(influx_server(tmp_path)) as influx, served(mosquitto_server(tmp_path)) as broker:
        url, token, org, bucket = influx
        (tmp_path / "token").write_text(token)
        (tmp_path / "token").chmod(0o600)
        port, log = free_port(), tmp_path / "log"
        command = [
            MAXGREEN, "simulate", "fleet", "--devices", "12", "--days", "2", "--dir", tmp_path / "fleet", "--influx-url",
            url, "--influx-token-file", tmp_path / "token", "--influx-bucket", bucket, "--influx-org", org, "--broker",
            f"127.0.0.1:{broker}", "--http-port", str(port), "--serve", "--json",
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=log.open("w"), stderr=subprocess.STDOUT)
        try:
            wait_for(lambda: "pages:" in log.read_text() or process.poll() is not None, 600, "the fleet")
            said = json.loads(next(line for line in log.read_text().splitlines() if line.startswith("{")))
            assert said["devices"] == 12
            assert said["batches"]["accepted"] > 2_000
            assert {"rejected", "held"} <= said["batches"].keys()
            assert all(int(total) > 0 for total in said["payable_mws"].values())
            page = log.read_text().partition("pages: ")[2].split()[0]
            assert urllib.request.urlopen(page, timeout=30).status == 200
            text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read().decode()
            assert 'maxgreen_ingest_devices{state="registered"} 12.0' in text
            labels = lambda: query(influx, 'SHOW TAG VALUES FROM "system" WITH KEY = "label"')  # noqa: E731
            wait_for(lambda: labels() and len(labels()[0]["values"]) == 12, 150, "the systems in the view")
            before = query(influx, 'SELECT count("seq") FROM "batch"')[0]["values"][0][1]
            wait_for(
                lambda: query(influx, 'SELECT count("seq") FROM "batch"')[0]["values"][0][1] > before,
                150,
                "new batches",
            )
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, log.read_text()
        settings = InfluxSettings(url=url, token_file=tmp_path / "token", org=org, bucket=bucket)
        engine = open_engine(f"sqlite:///{tmp_path}/fleet/ledger.db")
        since_ms = int((time.time() - 86_400) * 1000)
        assert compare(engine, asker(settings), running(settings), since_ms=since_ms).difference is None
        again = subprocess.run(
            [MAXGREEN, "simulate", "fleet", "--dir", tmp_path / "fleet"], capture_output=True, text=True, env=os.environ
        )
        assert again.returncode == 2
        assert "is not empty" in again.stderr
