"""Makes the alarms of Prometheus and of Grafana from one list. `--check` names the files that are not made so.

Each has a section of docs/alarms.md that says what it means, what to look at and what to do. An expression holds where
something is wrong: it returns a series for each thing that is.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parent.parent
FILES: Final = {
    "prometheus": ROOT / "grafana/alarms/prometheus.yml",
    "grafana": ROOT / "grafana/provisioning/alerting/maxgreen.yaml",
}
PAGE: Final = "docs/alarms.md"
_HEAD: Final = "# Made by scripts/alarms.py; docs/alarms.md says what each means and what to do.\n"


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm: when it holds for some time, somebody is told. `wakes`: at night too."""

    name: str
    expr: str
    for_: str
    summary: str
    wakes: bool = False

    @property
    def labels(self) -> dict[str, str]:
        """How it is sent: critical wakes somebody, a warning waits for the morning."""
        return {"severity": "critical" if self.wakes else "warning", "service": "maxgreen"}

    @property
    def notes(self) -> dict[str, str]:
        """What whoever is told reads."""
        return {"summary": self.summary, "runbook": f"{PAGE}#{self.name.lower()}"}


def _missing(metric: str, days: int = 1) -> str:
    """Return what holds where something was last done so long ago, or never."""
    return f"time() - {metric} > {days * 86_400} or absent({metric})"


ALARMS: Final = (
    Alarm("IngestDown", 'up{job="maxgreen-ingest"} == 0', "2m",
          "Ingest at {{ $labels.instance }} does not answer.", wakes=True),
    Alarm("IngestNotReady", "maxgreen_ingest_ready == 0", "5m",
          "Ingest at {{ $labels.instance }} waits for something: the metric maxgreen_ingest_waiting says which part.",
          wakes=True),
    Alarm("BrokerLost", "maxgreen_ingest_mqtt_connected == 0", "2m",
          "Ingest at {{ $labels.instance }} has no connection to the broker.", wakes=True),
    Alarm("NothingArrives",
          'increase(maxgreen_ingest_batches_total{verdict="accepted"}[30m]) == 0 and on (instance) '
          'maxgreen_ingest_devices{state="heard"} > 0', "10m",
          "No batch was accepted in half an hour, though devices sent in the last week.", wakes=True),
    Alarm("DevicesSilent",
          'maxgreen_ingest_devices{state="silent"} >= on (instance) group_left () 0.1 * '
          'sum by (instance) (maxgreen_ingest_devices{state="heard"} > 0)', "30m",
          "{{ $value }} devices that sent in the last week have sent nothing for 20 minutes."),
    Alarm("BatchesRejected",
          'sum by (instance, reason) (increase(maxgreen_ingest_batches_total{verdict="rejected"}[1h])) > 20', "5m",
          "{{ $value | humanize }} messages were rejected in an hour: {{ $labels.reason }}."),
    Alarm("BrokerRefuses",
          'sum by (instance, kind) (increase(maxgreen_ingest_broker_refusals_total{kind!="handshake"}[1h])) > '
          'on (instance) group_left () (60 + 3 * sum by (instance) (maxgreen_ingest_devices{state="heard"}))', "5m",
          "The broker refused {{ $value | humanize }} times in an hour: {{ $labels.kind }}."),
    Alarm("BeaconOld", "time() - maxgreen_ingest_beacon_timestamp_seconds > 900", "5m",
          "There is no beacon of the last quarter of an hour: devices cannot prove that they work."),
    Alarm("ViewBehind", "maxgreen_ingest_view_behind_changes > 10000", "15m",
          "InfluxDB lacks {{ $value }} changes of the ledger: dashboards are old, the ledger is not."),
    Alarm("LedgerDiskFull", "maxgreen_ingest_free_bytes < 2e9", "5m",
          "{{ $value | humanize1024 }}B are left where the ledger lies; without room nothing is accepted.", wakes=True),
    Alarm("DiskFull", 'node_filesystem_avail_bytes{mountpoint=~"/|/var.*",fstype!~"tmpfs|overlay"} < 2e9', "5m",
          "{{ $value | humanize1024 }}B are left at {{ $labels.mountpoint }}: broker, ledger or evidence need it.",
          wakes=True),
    Alarm("CertificateEnds", "maxgreen_ingest_certificate_expiry_timestamp_seconds - time() < 30 * 86400", "1h",
          "The certificate {{ $labels.file }} ends in {{ $value | humanizeDuration }}."),
    Alarm("CertificatesNotRenewed", "maxgreen_ca_expiring_certificates > 0", "1h",
          "{{ $value }} certificates of devices, services or the broker end within 30 days and were not renewed."),
    Alarm("AuthorityMissing", _missing("maxgreen_ca_last_run_timestamp_seconds"), "2h",
          "Nobody has looked after certificates for a day: who was suspended can still reach the broker."),
    Alarm("SettlementFailed", "maxgreen_settlement_last_run_failed == 1", "1h",
          "The last run of the settlement failed."),
    Alarm("SettlementMissing", _missing("maxgreen_settlement_last_run_timestamp_seconds", days=2), "26h",
          "The settlement has not run for two days; it runs every night."),
    Alarm("PeriodWaits",
          "time() - maxgreen_settlement_period_end_timestamp_seconds > 14 * 86400 and "
          "maxgreen_settlement_period_paid == 0", "1h",
          "A period that ended two weeks ago is not paid: 'maxgreen settle status' says on whom it waits."),
    Alarm("BackupOld", _missing("maxgreen_backup_timestamp_seconds", days=2), "2h",
          "There is no backup of the last two days."),
)  # fmt: skip


def prometheus() -> dict[str, Any]:
    """Return the rules file of Prometheus."""
    rules = [
        {"alert": one.name, "expr": one.expr, "for": one.for_, "labels": one.labels, "annotations": one.notes}
        for one in ALARMS
    ]
    return {"groups": [{"name": "maxgreen", "interval": "1m", "rules": rules}]}


def grafana() -> dict[str, Any]:
    """Return the same for Grafana's own alerting, asking Prometheus (provisioning file, version 1)."""
    return {
        "apiVersion": 1,
        "groups": [
            {"orgId": 1, "name": "maxgreen", "folder": "MaxCoin Green Energy", "interval": "1m",
             "rules": [_grafana_rule(one) for one in ALARMS]}
        ],
    }  # fmt: skip


def _grafana_rule(one: Alarm) -> dict[str, Any]:
    """A is what the expression returns, and B is 1 for each series of it."""
    span = {"from": 600, "to": 0}
    notes = {name: text.replace("$value", "$values.A.Value") for name, text in one.notes.items()}
    return {
        "uid": f"maxgreen-{one.name.lower()}",
        "title": one.name,
        "condition": "B",
        "for": one.for_,
        "noDataState": "OK",
        "execErrState": "Error",
        "labels": one.labels,
        "annotations": notes,
        "data": [
            {"refId": "A", "relativeTimeRange": span, "datasourceUid": "maxgreen-prometheus",
             "model": {"refId": "A", "expr": one.expr, "instant": True, "range": False}},
            {"refId": "B", "relativeTimeRange": span, "datasourceUid": "__expr__",
             "model": {"refId": "B", "type": "math", "expression": "$A * 0 + 1"}},
        ],
    }  # fmt: skip


def made() -> dict[Path, str]:
    """Return the files' texts."""
    values = {"prometheus": prometheus(), "grafana": grafana()}
    return {
        path: _HEAD + yaml.safe_dump(values[name], sort_keys=False, width=120, allow_unicode=True)
        for name, path in FILES.items()
    }


def main(arguments: list[str]) -> int:
    """Write them, or compare them with what is there."""
    wrong = [path for path, text in made().items() if not path.exists() or path.read_text() != text]
    if arguments == ["--check"]:
        for path in wrong:
            print(f"{path}: not what scripts/alarms.py makes; run it")
        return bool(wrong)
    for path, text in made().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
