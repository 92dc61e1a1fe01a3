"""Prometheus metrics of the service."""

from collections import Counter as Counts
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge


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


@dataclass(slots=True)
class Metrics:
    """Prometheus metrics of the service."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    batches: Counter = field(init=False)
    transactions: Counter = field(init=False)
    conflicts: Counter = field(init=False)
    connected: Gauge = field(init=False)
    last_commit: Gauge = field(init=False)

    def __post_init__(self) -> None:
        self.batches = Counter(
            "maxgreen_ingest_batches", "Messages judged", ["verdict", "reason"], registry=self.registry
        )
        self.transactions = Counter("maxgreen_ingest_transactions", "Ledger commits", registry=self.registry)
        self.conflicts = Counter(
            "maxgreen_ingest_conflicts",
            "Groups judged again since another process wrote a chain",
            registry=self.registry,
        )
        self.connected = Gauge("maxgreen_ingest_mqtt_connected", "1 with a broker", registry=self.registry)
        self.last_commit = Gauge(
            "maxgreen_ingest_last_commit_timestamp_seconds", "Time of the last commit", registry=self.registry
        )

    def add(self, commit: Commit) -> None:
        """Count a group."""
        for labels, count in commit.judged.items():
            self.batches.labels(*labels).inc(count)
        self.transactions.inc(commit.transactions)
        self.conflicts.inc(commit.conflicts)
        if commit.at_ms is not None:
            self.last_commit.set(commit.at_ms / 1000)
