"""The settlement service's settings."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from maxgreen.actions.wallet import find_account
from maxgreen.backend import deployment_faults, ledger_faults
from maxgreen.keyfile import load_key_file
from maxgreen.settings import NoPath, ServiceSettings, missing_file, tried
from maxgreen.store import open_store


class SettlementSettings(ServiceSettings):
    """All of `settlement.toml`."""

    model_config = SettingsConfigDict(env_prefix="MAXGREEN_SETTLEMENT__")
    command: ClassVar[str] = "settle"

    ledger: str = Field(default="sqlite:///ledger.db", description="SQLAlchemy URL: SQLite or PostgreSQL")
    key_file: Path = Field(default=Path("backend.pem"), description="the backend's signing key")
    clock_file: NoPath = Field(default=None, description="trials only: a file that holds the time, ms")
    rpc: str = Field(default="chain.db", description="JSON-RPC URL, or the file of an embedded chain")
    deployment: Path = Field(default=Path("deployment.json"), description="the contracts' addresses")
    operator_file: str = Field(default="operator.key", description="the operator's wallet, or a file with its secret")
    member_files: tuple[str, ...] = Field(
        default=(), description="trials only: secrets of DAO members, who then vote at once"
    )
    evidence: str = Field(
        default="evidence", description="the evidence store: a folder, or s3://BUCKET/PREFIX?endpoint=URL"
    )
    processes: int = Field(
        default=1, ge=0, description="processes that derive lines, each with its own connection; 0 = one per processor"
    )
    output_dir: Path = Field(default=Path("settlement"), description="statements and evidence packs")
    evidence_url: str = Field(
        default="", description="where the DAO finds a period's pack; {period} stands for its name"
    )
    metrics_dir: NoPath = Field(
        default=None, description="where maxgreen_settlement.prom goes, for node_exporter; empty = nowhere"
    )
    wait: bool = Field(default=False, description="wait for votes and timelock instead of going on at the next run")

    def faults(self) -> Iterator[str]:
        """Yield what `run` would refuse."""
        yield from ledger_faults(self.ledger)
        yield from tried("key_file", lambda: load_key_file(self.key_file))
        yield from deployment_faults("deployment", self.deployment)
        yield from tried("evidence", lambda: open_store(self.evidence))
        yield from missing_file("clock_file", self.clock_file)
        for number, wallet in enumerate((self.operator_file, *self.member_files)):
            yield from tried("member_files" if number else "operator_file", partial(find_account, wallet))
