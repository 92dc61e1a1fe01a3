"""Prometheus metrics of the service."""

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge


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
