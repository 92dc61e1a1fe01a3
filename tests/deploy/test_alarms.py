"""The alarms: each fires on what it is for and not beside it (Prometheus' own engine), and has its page."""

import json
import re
import subprocess
import sys

import pytest
import yaml

from scripts.alarms import ALARMS, FILES
from tests.conftest import ROOT, need
from tests.services import CACHE

pytestmark = pytest.mark.services
PROMTOOL = CACHE / "promtool-3.5.0/promtool"
AMTOOL = CACHE / "amtool-0.28.1/amtool"
INGEST = '{instance="here",job="maxgreen-ingest"}'
FINE = {
    f"up{INGEST}": "1",
    'maxgreen_ingest_ready{instance="here"}': "1",
    'maxgreen_ingest_mqtt_connected{instance="here"}': "1",
    'maxgreen_ingest_batches_total{instance="here",verdict="accepted",reason=""}': "0+60x",
    'maxgreen_ingest_batches_total{instance="here",verdict="rejected",reason="malformed"}': "0",
    'maxgreen_ingest_broker_refusals_total{instance="here",kind="twice"}': "5",
    'maxgreen_ingest_broker_refusals_total{instance="here",kind="handshake"}': "0+9x",
    'maxgreen_ingest_devices{instance="here",state="heard"}': "100",
    'maxgreen_ingest_devices{instance="here",state="silent"}': "3",
    'maxgreen_ingest_beacon_timestamp_seconds{instance="here"}': "0+60x",
    'maxgreen_ingest_view_behind_changes{instance="here"}': "5",
    'maxgreen_ingest_free_bytes{instance="here"}': "50000000000",
    'maxgreen_ingest_certificate_expiry_timestamp_seconds{instance="here",file="ingest.crt"}': "90000000",
    'node_filesystem_avail_bytes{instance="here",mountpoint="/",fstype="ext4"}': "50000000000",
    'node_filesystem_avail_bytes{instance="here",mountpoint="/run",fstype="tmpfs"}': "5000",
    "maxgreen_ca_expiring_certificates": "0",
    "maxgreen_ca_last_run_timestamp_seconds": "0+60x",
    "maxgreen_settlement_last_run_failed": "0",
    "maxgreen_settlement_last_run_timestamp_seconds": "0+60x",
    "maxgreen_settlement_period_end_timestamp_seconds": "0",
    "maxgreen_settlement_period_paid": "1",
    "maxgreen_backup_timestamp_seconds": "0+60x",
}
WRONG = {  # what differs from FINE; the rest stays
    "IngestDown": {f"up{INGEST}": "0"},
    "IngestNotReady": {'maxgreen_ingest_ready{instance="here"}': "0"},
    "BrokerLost": {'maxgreen_ingest_mqtt_connected{instance="here"}': "0"},
    "NothingArrives": {'maxgreen_ingest_batches_total{instance="here",verdict="accepted",reason=""}': "7"},
    "DevicesSilent": {'maxgreen_ingest_devices{instance="here",state="silent"}': "11"},
    "BatchesRejected": {'maxgreen_ingest_batches_total{instance="here",verdict="rejected",reason="malformed"}': "0+1x"},
    "BrokerRefuses": {'maxgreen_ingest_broker_refusals_total{instance="here",kind="twice"}': "0+7x"},
    "BeaconOld": {'maxgreen_ingest_beacon_timestamp_seconds{instance="here"}': "0"},
    "ViewBehind": {'maxgreen_ingest_view_behind_changes{instance="here"}': "20000"},
    "LedgerDiskFull": {'maxgreen_ingest_free_bytes{instance="here"}': "1000000000"},
    "DiskFull": {'node_filesystem_avail_bytes{instance="here",mountpoint="/",fstype="ext4"}': "1000000000"},
    "CertificateEnds": {
        'maxgreen_ingest_certificate_expiry_timestamp_seconds{instance="here",file="ingest.crt"}': "2500000"
    },
    "CertificatesNotRenewed": {"maxgreen_ca_expiring_certificates": "2"},
    "AuthorityMissing": {"maxgreen_ca_last_run_timestamp_seconds": "0"},
    "SettlementFailed": {"maxgreen_settlement_last_run_failed": "1"},
    "SettlementMissing": {"maxgreen_settlement_last_run_timestamp_seconds": "0"},
    "PeriodWaits": {"maxgreen_settlement_period_paid": "0"},
    "BackupOld": {"maxgreen_backup_timestamp_seconds": "0"},
}
MINUTES = 21 * 1_440  # three weeks


def series(values):
    def whole(value):
        return value if " " in value else f"{value}{MINUTES}" if value.endswith("x") else f"{value}x{MINUTES}"

    return [{"series": name, "values": whole(value)} for name, value in values.items()]


def fires(values, folder):
    """Return the names of the alarms that fire at the end of three weeks of these values, by promtool."""
    need(PROMTOOL, "promtool 3.5.0 is not built (make services, with go)")
    test = {
        "rule_files": [str(FILES["prometheus"])],
        "evaluation_interval": "10m",
        "tests": [
            {
                "interval": "1m",
                "input_series": series(values),
                "promql_expr_test": [
                    {"expr": 'ALERTS{alertstate="firing"}', "eval_time": f"{MINUTES}m", "exp_samples": []}
                ],
            }
        ],
    }
    path = folder / "test.yml"
    path.write_text(yaml.safe_dump(test, width=10_000))
    done = subprocess.run([PROMTOOL, "test", "rules", path], capture_output=True, text=True)
    text = done.stdout + done.stderr
    assert done.returncode in {0, 1}, text
    assert "error" not in text, text
    got = text.partition("got:")[2]
    return set(re.findall(r'alertname=\\?"(\w+)', got))


def test_nothing_fires_while_all_is_well(tmp_path):
    assert fires(FINE, tmp_path) == set()


def test_nothing_fires_on_a_fresh_installation(tmp_path):
    """No device yet, no line; the units of docs/operator.md have run once."""
    fresh = {f'maxgreen_ingest_devices{{instance="here",state="{state}"}}': "0" for state in ("heard", "silent")}
    fresh['maxgreen_ingest_batches_total{instance="here",verdict="accepted",reason=""}'] = "0"
    assert fires({**FINE, **fresh}, tmp_path) == set()


def test_a_fleet_that_comes_back_at_once_copies_no_key(tmp_path):
    twice = 'maxgreen_ingest_broker_refusals_total{instance="here",kind="twice"}'
    assert fires({**FINE, twice: f"0x{MINUTES - 30} 200x30"}, tmp_path) == set()  # 100 devices, twice each


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        ("maxgreen_ca_last_run_timestamp_seconds", "AuthorityMissing"),
        ("maxgreen_settlement_last_run_timestamp_seconds", "SettlementMissing"),
        ("maxgreen_backup_timestamp_seconds", "BackupOld"),
    ],
)
def test_what_was_never_done_is_missing_too(metric, name, tmp_path):
    assert fires({known: value for known, value in FINE.items() if known != metric}, tmp_path) == {name}


@pytest.mark.parametrize("name", [one.name for one in ALARMS])
def test_an_alarm_fires_on_what_it_is_for(name, tmp_path):
    assert fires({**FINE, **WRONG[name]}, tmp_path) == {name}


def test_prometheus_and_alertmanager_take_the_files():
    need(PROMTOOL, "promtool 3.5.0 is not built (make services, with go)")
    need(AMTOOL, "amtool 0.28.1 is not built (make services, with go)")
    subprocess.run([PROMTOOL, "check", "rules", FILES["prometheus"]], check=True, capture_output=True)
    subprocess.run([AMTOOL, "check-config", ROOT / "grafana/alarms/alertmanager.yml"], check=True, capture_output=True)


def test_the_files_are_what_their_source_makes():
    done = subprocess.run([sys.executable, ROOT / "scripts/alarms.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_alarm_has_its_page_and_every_page_its_alarm():
    text = (ROOT / "docs/alarms.md").read_text()
    assert re.findall(r"^## (?!Metrics)(\w+)$", text, re.MULTILINE) == [one.name for one in ALARMS]


def test_alarms_and_dashboards_ask_for_metrics_that_there_are():
    known = set(re.findall(r"`(maxgreen_\w+)`", (ROOT / "docs/alarms.md").read_text()))
    asked = " ".join(one.expr for one in ALARMS)
    for path in (ROOT / "grafana/dashboards").glob("*.json"):
        for panel in json.loads(path.read_text())["panels"]:
            asked += " ".join(target.get("expr", "") for target in panel["targets"])
    assert {re.sub("_total$", "", name) for name in re.findall(r"maxgreen_\w+", asked)} <= known


def test_grafanas_rules_ask_the_data_source_that_is_provisioned():
    sources = yaml.safe_load((ROOT / "grafana/provisioning/datasources/maxgreen.yaml").read_text())["datasources"]
    rules = yaml.safe_load(FILES["grafana"].read_text())["groups"][0]["rules"]
    assert {rule["data"][0]["datasourceUid"] for rule in rules} <= {source["uid"] for source in sources}
    assert len(rules) == len(ALARMS)
