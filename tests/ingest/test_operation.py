"""What an operator meets: two services with one name, a port that is taken, what the log and the metrics say."""

import re
import socket
import time
import urllib.request

import pytest

from ingest.news import News
from maxgreen.protocol.identity import device_topic
from simulator.lab import Lab
from tests.conftest import ROOT, served
from tests.ingest.site import Site
from tests.services import free_port, mosquitto_server, stop, wait_for

pytestmark = pytest.mark.services


@pytest.fixture
def site(tmp_path, ledger_url):
    with served(mosquitto_server(tmp_path)) as port:
        yield Site(tmp_path, ledger_url, port, [Lab(1)])


def send(site, lab, payload=None):
    client = site.client("publisher")
    message = payload or lab.sign(lab.batch([(1, 1)]), network=site.network)
    client.publish(device_topic(lab.device, "batch"), message, qos=1).wait_for_publish(30)
    client.disconnect()
    client.loop_stop()


def metrics(port):
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    return dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))


def test_a_second_service_of_one_name_waits_for_the_first_and_takes_over(site):
    ports = [free_port(), free_port()]
    first = site.service(http=ports[0])
    second = None
    try:
        wait_for(lambda: "ok" in site.ready(ports[0]), 60, "the first one's readiness")
        second = site.service("second", http=ports[1], client_id="ingest")
        wait_for(lambda: "another ingest is client 'ingest'" in site.log("second"), 60, "the word of the second")
        assert f"(process {first.pid} of this machine)" in site.log("second")
        time.sleep(3)
        assert "ok" in site.ready(ports[0])
        assert site.log().count("connected") == 1  # neither throws the other out
        first.kill()
        first.wait()
        wait_for(lambda: "ok" in site.ready(ports[1]), 60, "the second one's readiness")
    finally:
        for process in filter(None, (first, second)):
            stop(process)


def test_a_port_that_is_taken_is_waited_for_and_said_once(site):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = site.service(http=port)
        wait_for(lambda: "Address already in use" in site.log(), 60, "the word that it waits")
        assert "http.port" in site.log()
        time.sleep(3)
    try:
        wait_for(lambda: "ok" in site.ready(port), 60, "readiness")
    finally:
        stop(process)
    assert site.log().count("Address already in use") == 1
    assert process.returncode == 0


def test_rejections_are_counted_in_one_line_and_said_once(caplog):
    counts = {("accepted", ""): 7, ("rejected", "malformed"): 2}
    news = News(lambda: dict(counts))
    caplog.set_level("INFO")
    assert news.step() > 0
    assert "2 rejected (malformed); 7 accepted or known" in caplog.text
    caplog.clear()
    counts["accepted", ""] = 100
    news.step()
    assert caplog.text == ""
    counts["held", "gap_before"] = 1
    news.step()
    assert "1 held (gap_before)" in caplog.text


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_the_log_says_what_runs_and_every_metric_moves(site, tmp_path):
    port = free_port()
    process = site.service(http=port)
    try:
        wait_for(lambda: "ok" in site.ready(port), 60, "readiness")
        text = site.log()
        for part in (site.network, f"127.0.0.1:{site.broker_port} as 'ingest'", f"http://127.0.0.1:{port}", "scrypt"):
            assert part in text
        send(site, site.lab(1))
        send(site, site.lab(1), b"rubbish")
        wait_for(lambda: metrics(port)['maxgreen_ingest_devices{state="heard"}'] == "1.0", 60, "the gauges")
        found = metrics(port)
    finally:
        stop(process)
    documented = set(re.findall(r"`(maxgreen_ingest_\w+)`", (ROOT / "docs/alarms.md").read_text()))
    served_names = {re.sub(r"(_total|_created)?(\{.*)?$", "", name) for name in found}
    without_tls = {"maxgreen_ingest_certificate_expiry_timestamp_seconds"}
    assert documented - without_tls == served_names
    moved = {name for name, value in found.items() if float(value)}
    assert {
        "maxgreen_ingest_mqtt_connected", "maxgreen_ingest_ready", "maxgreen_ingest_last_commit_timestamp_seconds",
        "maxgreen_ingest_beacon_timestamp_seconds", 'maxgreen_ingest_devices{state="registered"}',
        'maxgreen_ingest_batches_total{reason="accepted",verdict="accepted"}', "maxgreen_ingest_transactions_total",
    } <= moved  # fmt: skip
