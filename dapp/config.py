"""The settings of the pages."""

from collections.abc import Iterator
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


class HttpSettings(Table):
    """Where the pages are."""

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8090, ge=0, le=65_535, description="port; 0 = any free one")
    url: str = Field(
        default="http://localhost:8090",
        description="how people reach them: what they sign in to names it, and no other host is answered",
    )
    per_minute: int = Field(default=600, ge=1, description="requests of one address in a minute, before it must wait")


class LiveSettings(BrokerTable):
    """The broker, for power as it is now; without it pages show the newest batch."""

    enabled: bool = Field(default=False, description="listen to the states that agents publish")
    client_id: str = Field(
        default="dapp", min_length=1, max_length=64, description="client id, as its certificate's CN"
    )


class DappSettings(ServiceSettings):
    """All of `dapp.toml`."""

    model_config = SettingsConfigDict(env_prefix="MAXGREEN_DAPP__")
    command: ClassVar[str] = "dapp"

    ledger: str = Field(default="sqlite:///ledger.db", description="SQLAlchemy URL: SQLite or PostgreSQL")
    evidence: str = Field(default="evidence", description="settlement's evidence store: a folder, or s3://… as there")
    rpc: str = Field(default="http://127.0.0.1:8545", description="JSON-RPC URL")
    deployment: Path = Field(default=Path("deployment.json"), description="the contracts' addresses")
    state_file: Path = Field(default=Path("dapp.db"), description="sessions, names, links: this service's own")
    key_file: NoPath = Field(
        default=None, description="the backend's signing key, for commands to devices; empty = no commands"
    )
    clock_file: NoPath = Field(default=None, description="trials only: a file that holds the time, ms")
    http: HttpSettings = Field(default=HttpSettings(), description="where the pages are")
    live: LiveSettings = Field(default=LiveSettings(), description="power as it is now")

    def faults(self) -> Iterator[str]:
        """Yield what `run` would refuse."""
        yield from ledger_faults(self.ledger)
        yield from deployment_faults("deployment", self.deployment)
        yield from tried("evidence", lambda: open_store(self.evidence))
        if (key := self.key_file) is not None:
            yield from tried("key_file", lambda: load_key_file(key))
        yield from missing_file("clock_file", self.clock_file)
        if self.live.enabled:
            yield from self.live.faults("live")
        address = urlsplit(self.http.url)
        if address.scheme not in {"http", "https"} or not address.hostname:
            yield f"http.url = {self.http.url!r}: expected http://HOST:PORT or https://HOST"
