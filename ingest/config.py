"""The ingest service's settings."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from maxgreen.backend import deployment_faults, ledger_faults
from maxgreen.keyfile import load_key_file
from maxgreen.mqtt import BrokerTable
from maxgreen.settings import NoPath, ServiceSettings, Table, missing_file, tried
from maxgreen.store import open_store


class BrokerSettings(BrokerTable):
    """The MQTT broker."""

    client_id: str = Field(default="ingest", description="client id of the persistent session")


class NatsSettings(Table):
    """The NATS cluster behind the MQTT broker, where several machines judge."""

    servers: list[str] = Field(default=[], description="nats://HOST:PORT of its nodes; empty = batches come by MQTT")
    ca: NoPath = Field(default=None, description="certificate authority; empty = no TLS (trials only)")
    certificate: NoPath = Field(default=None, description="this client's TLS certificate")
    key: NoPath = Field(default=None, description="its key")
    credentials: NoPath = Field(default=None, description="a .creds file, where the cluster asks for one")
    ack_wait_s: float = Field(default=30, ge=1, le=3_600, description="when a message that was not judged comes again")


class ChainSettings(Table):
    """The chain that the registry and the beacons come from."""

    rpc: str = Field(default="chain.db", description="JSON-RPC URL, or the file of an embedded chain")
    deployment: Path = Field(default=Path("deployment.json"), description="the contracts' addresses")
    refresh_s: float = Field(default=30, gt=0, description="how often the registry is read again")

    def shown(self) -> str:
        """Return where the chain is, for the log: a URL's path may hold a secret."""
        address = urlsplit(self.rpc)
        return (
            f"{address.scheme}://{address.hostname}:{address.port or ''}".rstrip(":") if address.hostname else self.rpc
        )


class HttpSettings(Table):
    """Health and metrics."""

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8080, ge=0, le=65_535, description="port; 0 = neither health nor metrics")


class InfluxSettings(Table):
    """The view for Grafana."""

    url: str = Field(default="", description="InfluxDB 1.8+ or 2.x; empty = no view")
    token_file: NoPath = Field(default=None, description="file with the token (2.x) or user:password (1.x)")
    org: str = Field(default="maxgreen", description="organisation (2.x)")
    bucket: str = Field(default="maxgreen", description="bucket, or database/policy (1.x)")


class IngestSettings(ServiceSettings):
    """All of `ingest.toml`."""

    model_config = SettingsConfigDict(env_prefix="MAXGREEN_INGEST__")
    command: ClassVar[str] = "ingest"

    ledger: str = Field(default="sqlite:///ledger.db", description="SQLAlchemy URL: SQLite or PostgreSQL")
    key_file: Path = Field(default=Path("backend.pem"), description="the backend's signing key; made when missing")
    evidence: str = Field(
        default="", description="settlement's evidence store, for what was pruned: a folder, or s3://… as there"
    )
    certificates: NoPath = Field(
        default=None, description="folder of 'maxgreen ca renew': each device is sent its own; empty = none"
    )
    clock_file: NoPath = Field(default=None, description="trials only: a file that holds the time, ms")
    processes: int = Field(
        default=1, ge=1, le=64, description="how many judge; for a fleet as many as there are processors"
    )
    broker: BrokerSettings = Field(default=BrokerSettings(), description="the MQTT broker")
    nats: NatsSettings = Field(default=NatsSettings(), description="the NATS cluster behind it, if any")
    chain: ChainSettings = Field(default=ChainSettings(), description="registry and beacons")
    http: HttpSettings = Field(default=HttpSettings(), description="health and metrics")
    influx: InfluxSettings = Field(default=InfluxSettings(), description="the view for Grafana")

    def faults(self) -> Iterator[str]:
        """Yield what `run` would refuse."""
        yield from ledger_faults(self.ledger)
        if "@" in urlsplit(self.influx.url).netloc:  # it stands in the log
            yield "influx.url: no user or password in it; they belong into influx.token_file"
        for name, path in (
            ("influx.token_file", self.influx.token_file),
            ("clock_file", self.clock_file),
            *((f"nats.{name}", getattr(self.nats, name)) for name in ("ca", "certificate", "key", "credentials")),
        ):
            yield from missing_file(name, path)
        yield from self.broker.faults("broker")
        yield from deployment_faults("chain.deployment", self.chain.deployment)
        if self.key_file.exists():
            yield from tried("key_file", lambda: load_key_file(self.key_file))
        if self.evidence:
            yield from tried("evidence", lambda: open_store(self.evidence))
        for server in self.nats.servers:
            if urlsplit(server).scheme not in {"nats", "tls"} or not urlsplit(server).hostname:
                yield f"nats.servers: {server!r}: expected nats://HOST:PORT or tls://HOST:PORT"
        if self.nats.servers and find_spec("nats") is None:
            yield "nats.servers: install maxgreen[nats]"
        view = urlsplit(self.influx.url)
        if self.influx.url and (view.scheme not in {"http", "https"} or not view.hostname):
            yield f"influx.url = {self.influx.url!r}: expected http://HOST:PORT or https://HOST"
