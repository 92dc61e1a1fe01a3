"""The settlement service's settings."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from maxgreen.settings import ServiceSettings


class SettlementSettings(ServiceSettings):
    """All of `settlement.toml`."""

    model_config = SettingsConfigDict(env_prefix="MAXGREEN_SETTLEMENT__")

    ledger: str = Field(default="sqlite:///ledger.db", description="SQLAlchemy URL: SQLite or PostgreSQL")
    key_file: Path = Field(default=Path("backend.pem"), description="the backend's signing key")
    clock_file: Path | None = Field(default=None, description="trials only: a file that holds the time, ms")
    rpc: str = Field(default="chain.db", description="JSON-RPC URL, or the file of an embedded chain")
    deployment: Path = Field(default=Path("deployment.json"), description="the contracts' addresses")
    operator_file: str = Field(default="operator.key", description="the operator's wallet, or a file with its secret")
    member_files: tuple[str, ...] = Field(
        default=(), description="trials only: secrets of DAO members, who then vote at once"
    )
    evidence: str = Field(
        default="evidence", description="the evidence store: a folder, or s3://BUCKET/PREFIX?endpoint=URL"
    )
    output_dir: Path = Field(default=Path("settlement"), description="statements and evidence packs")
    evidence_url: str = Field(
        default="", description="where the DAO finds a period's pack; {period} stands for its name"
    )
    wait: bool = Field(default=False, description="wait for votes and timelock instead of going on at the next run")
