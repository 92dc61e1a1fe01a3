"""The InfluxDB view, the pages, and Grafana's queries on a real InfluxDB."""

import json
import re
import time
import urllib.parse
import urllib.request

import pytest
from fastapi.testclient import TestClient

from ingest.config import InfluxSettings
from ingest.http import make_app
from ingest.influx import BadLinesError, InfluxSink, Projector
from ingest.metrics import Metrics
from maxgreen.errors import Fatal, Retryable
from simulator.lab import NETWORK, Lab
from tests.conftest import ROOT
from tests.ingest.desks import LATER, Bench

pytestmark = pytest.mark.services


def send(engine, message, received_ms=LATER):
    return Bench(engine).send(message, received_ms=received_ms)


class FakeSink:
    """An InfluxDB in memory, with the faults that a real one shows."""

    def __init__(self):
        self.lines, self.error, self.bad = {}, None, ""

    def write(self, lines):
        if self.error:
            raise self.error
        if self.bad and any(self.bad in line for line in lines):
            raise BadLinesError("400")
        for line in lines:
            key, fields, t_ms = line.rsplit(" ", 2)
            self.lines[key, t_ms] = fields


def query(influx, text):
    url, token, _org, bucket = influx
    arguments = urllib.parse.urlencode({"db": bucket, "q": text, "epoch": "ms"})
    request = urllib.request.Request(f"{url}/query?{arguments}", headers={"Authorization": f"Token {token}"})
    answer = json.loads(urllib.request.urlopen(request, timeout=20).read())["results"][0]
    assert "error" not in answer, answer
    return answer.get("series", [])


def sink(influx, tmp_path):
    url, token, org, bucket = influx
    (tmp_path / "token").write_text(token)
    return InfluxSink(InfluxSettings(url=url, token_file=tmp_path / "token", org=org, bucket=bucket))


def test_an_outage_of_the_view_stops_nothing_and_loses_nothing(engine):
    lab, fake = Lab(), FakeSink()
    for _ in range(3):
        send(engine, lab.next())
    fake.error = Retryable("away")
    with pytest.raises(Retryable):
        Projector(engine, fake).step()
    fake.error = None
    assert Projector(engine, fake).step() == 3
    before = dict(fake.lines)
    assert Projector(engine, fake).step() == 0
    assert Projector(engine, fake).rebuild() == 3
    assert fake.lines == before


def test_a_bad_line_is_isolated_and_the_others_are_written(engine):
    fake = FakeSink()
    send(engine, Lab().next())
    fake.bad = "channel=1,role=1 v=18.0"
    projector = Projector(engine, fake)
    assert projector.step() == 1
    assert projector.quarantined == 10
    assert len(fake.lines) == 23 - 10


def test_the_real_influxdb_holds_what_the_ledger_holds(engine, influx, tmp_path):
    lab = Lab()
    for _ in range(4):
        send(engine, lab.next())
    projector = Projector(engine, sink(influx, tmp_path))
    projector.rebuild()
    projector.rebuild()
    [series] = query(influx, f"SELECT count(v) FROM sample WHERE channel='1' AND device='{lab.device.hex()}'")
    assert series["values"][0][1] == 40
    [series] = query(
        influx, f"SELECT last(forward_kwh) FROM register WHERE channel='1' AND device='{lab.device.hex()}'"
    )
    assert series["values"][0][1] == pytest.approx(lab.meters[1].register_mws / 3.6e9)


def test_a_wrong_token_or_bucket_holds_the_view(engine, influx, tmp_path):
    url, _token, org, bucket = influx
    (tmp_path / "bad").write_text("wrong")
    with pytest.raises(Fatal, match="check url, token and bucket"):
        InfluxSink(InfluxSettings(url=url, token_file=tmp_path / "bad", org=org, bucket=bucket)).write(["a b=1 1"])
    with pytest.raises(BadLinesError):
        sink(influx, tmp_path).write(["not line protocol"])
    with pytest.raises(Retryable):
        InfluxSink(InfluxSettings(url="http://127.0.0.1:9", org=org, bucket=bucket)).write(["a b=1 1"])


def test_every_panel_of_the_dashboard_gets_rows(engine, influx, tmp_path):
    from maxgreen.ledger.book import Book
    from maxgreen.protocol.backend import sign_beacon
    from maxgreen.protocol.keys import MemorySigner
    from simulator.lab import EASY, beacon

    now_ms = time.time_ns() // 1_000_000 - 60_000
    lab = Lab(wall_offset_ms=now_ms - 60_000)
    challenge = beacon(7, now_ms // 1000 - 60)
    with engine.begin() as connection:
        Book(connection).add_beacon(challenge, sign_beacon(challenge, MemorySigner.from_secret(2), NETWORK))
    for _ in range(3):
        send(engine, lab.next(work=lab.work(challenge, nbits=EASY)), now_ms + 60_000)
    Projector(engine, sink(influx, tmp_path)).rebuild()
    dashboard = json.loads((ROOT / "grafana/dashboards/energy.json").read_text())
    titles = {panel["title"] for panel in dashboard["panels"]}
    assert {"Power now", "Energy today", "Energy this month", "Online share", "Batches by verdict"} <= titles
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            text = target["query"].replace("$timeFilter", "time > now() - 1h").replace("$__interval", "1m")
            assert not re.search(r"\$(?!tag)", text)
            assert query(influx, text), panel["title"]


def test_pages_and_api_show_the_device(engine):
    lab = Lab()
    send(engine, lab.next())
    send(engine, b"noise")
    metrics = Metrics()
    client = TestClient(make_app(engine, metrics, lambda: None))
    device = lab.device.hex()
    [known] = client.get("/api/devices").json()
    assert (known["device"], known["batches"]) == (device, 1)
    assert known["channels"][1]["energy_kwh"] == lab.meters[1].register_mws / 3.6e9
    assert client.get(f"/api/devices/{device}/batches").json()[0]["verdict"] == "accepted"
    assert {v["reason"]: v["count"] for v in client.get("/api/verdicts").json()} == {"accepted": 1, "malformed": 1}
    assert client.get("/api/evidence").json()[0]["reason"] == "malformed"
    assert client.get("/api/statements").json() == []
    assert "Sent" in client.get(f"/devices/{device}").text
    assert device in client.get("/").text
    assert client.get("/devices/00").status_code == 404
    assert client.get("/health/live").json() == {"status": "ok"}
    metrics.batches.labels("accepted", "").inc(3)
    assert 'maxgreen_ingest_batches_total{reason="",verdict="accepted"} 3.0' in client.get("/metrics").text
    waiting = TestClient(make_app(engine, Metrics(), lambda: "no connection to the broker"))
    assert waiting.get("/health/ready").status_code == 503
