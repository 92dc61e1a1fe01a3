"""Prometheus metrics of the service (docs/alarms.md says what each is for)."""

import threading
from collections import Counter as Counts
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge

from ingest.refusals import KINDS
from maxgreen import __version__
from maxgreen.service import scrypt_kernel


@dataclass(frozen=True, slots=True)
class Commit:
    """What a group was: messages by verdict and reason, transactions, attempts that another was before, its time."""

    judged: Mapping[tuple[str, str], int] = field(default_factory=Counts)
    transactions: int = 0
    conflicts: int = 0
    at_ms: int | None = None


class Counting(Protocol):
    """Who counts."""

    def add(self, commit: Commit) -> None:
        """Count a group."""
        ...


class Metrics:
    """Prometheus metrics of the service."""

    def __init__(self) -> None:
        self.written = threading.Event()  # since whoever waits for it cleared it
        self.registry = CollectorRegistry()
        self.batches = Counter(
            "maxgreen_ingest_batches", "Messages judged", ["verdict", "reason"], registry=self.registry
        )
        self.transactions = Counter("maxgreen_ingest_transactions", "Ledger commits", registry=self.registry)
        self.conflicts = Counter(
            "maxgreen_ingest_conflicts",
            "Groups judged again since another process wrote a chain",
            registry=self.registry,
        )
        self._refusals = Counter(
            "maxgreen_ingest_broker_refusals", "What the broker refused", ["kind"], registry=self.registry
        )
        for kind in KINDS:
            self._refusals.labels(kind)
        self.connected = self._gauge("maxgreen_ingest_mqtt_connected", "1 with a broker")
        self.last_commit = self._gauge("maxgreen_ingest_last_commit_timestamp_seconds", "Time of the last commit")
        self.ready = self._gauge("maxgreen_ingest_ready", "1 while nothing is waited for, as /health/ready says")
        self.waiting = self._gauge("maxgreen_ingest_waiting", "1 while a part waits for what it needs", ["part"])
        self.beacon = self._gauge("maxgreen_ingest_beacon_timestamp_seconds", "When the newest beacon was issued")
        self.devices = self._gauge(
            "maxgreen_ingest_devices", "Keys that are registered; heard in a week; silent of those", ["state"]
        )
        self.view_behind = self._gauge(
            "maxgreen_ingest_view_behind_changes", "Changes of the ledger that the view lacks"
        )
        # by what lies there: without a label it would be 0 where the ledger is no file
        self.free = self._gauge("maxgreen_ingest_free_bytes", "Room where a SQLite ledger lies", ["of"])
        self.certificate = self._gauge(
            "maxgreen_ingest_certificate_expiry_timestamp_seconds", "When a certificate ends", ["file"]
        )
        self.batches.labels("accepted", "accepted")  # 0 from the start, so that an alarm sees that nothing comes
        build = self._gauge("maxgreen_ingest_build_info", "1; what runs", ["version", "scrypt_kernel"])
        build.labels(__version__, scrypt_kernel()).set(1)

    def add(self, commit: Commit) -> None:
        """Count a group."""
        for labels, count in commit.judged.items():
            self.batches.labels(*labels).inc(count)
        self.transactions.inc(commit.transactions)
        self.conflicts.inc(commit.conflicts)
        if commit.at_ms is not None:
            self.last_commit.set(commit.at_ms / 1000)
            self.written.set()

    def add_refusal(self, kind: str) -> None:
        """Count something that the broker refused."""
        self._refusals.labels(kind).inc()

    def judged(self) -> dict[tuple[str, str], int]:
        """Return how many messages were judged so far, by verdict and reason."""
        samples = [sample for metric in self.batches.collect() for sample in metric.samples]
        return {
            (sample.labels["verdict"], sample.labels["reason"]): int(sample.value)
            for sample in samples
            if sample.name.endswith("_total")
        }

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] | list[str] = ()) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)
