"""A site: the settings of all services on a machine, each of which may be absent."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlsplit

from sqlalchemy.engine import make_url

from dapp.config import DappSettings
from ingest.config import IngestSettings
from maxgreen.actions.wallet import account_path
from maxgreen.errors import Fatal
from maxgreen.ledger.engine import without_password
from maxgreen.settings import ServiceSettings, load
from settlement.config import SettlementSettings

SETTINGS: Final = Path("/etc/maxgreen")
AUTHORITY: Final = Path("/var/lib/maxgreen/ca")
S = TypeVar("S", bound=ServiceSettings)


@dataclass(frozen=True, slots=True)
class Site:
    """What is on this machine; a service that is not here is None."""

    folder: Path
    ingest: IngestSettings | None
    settlement: SettlementSettings | None
    dapp: DappSettings | None
    authority: Path | None

    @classmethod
    def read(cls, folder: Path, authority: Path) -> "Site":
        """Read the settings in a folder; Fatal when there are none, or when one of them is wrong."""
        found = cls(
            folder,
            _read(IngestSettings, folder / "ingest.toml"),
            _read(SettlementSettings, folder / "settlement.toml"),
            _read(DappSettings, folder / "dapp.toml"),
            authority if (authority / "ca.key").exists() else None,
        )
        if found.ingest is None and found.settlement is None and found.dapp is None:
            raise Fatal(f"settings {folder}: there is no ingest.toml, settlement.toml or dapp.toml")
        return found

    @property
    def services(self) -> dict[str, IngestSettings | SettlementSettings | DappSettings]:
        """The services that are here, by name."""
        named = {"ingest": self.ingest, "settlement": self.settlement, "dapp": self.dapp}
        return {name: settings for name, settings in named.items() if settings is not None}

    @property
    def ledger(self) -> str:
        """The ledger's URL; Fatal where services have different ones."""
        shown = lambda url: without_password(make_url(url)).render_as_string()  # noqa: E731
        return self._same("ledger", {name: one.ledger for name, one in self.services.items()}, shown)

    @property
    def evidence(self) -> str:
        """The evidence store; Fatal where services have different ones. Empty where there is none."""
        return self._same("evidence", {name: one.evidence for name, one in self.services.items() if one.evidence})

    @property
    def rpc(self) -> str:
        """Where the chain is."""
        found = [self.ingest.chain.rpc] if self.ingest is not None else []
        found += [one.rpc for one in (self.settlement, self.dapp) if one is not None]
        return found[0]

    @property
    def deployment(self) -> Path:
        """The file with the contracts' addresses."""
        found = [self.ingest.chain.deployment] if self.ingest is not None else []
        found += [one.deployment for one in (self.settlement, self.dapp) if one is not None]
        return found[0]

    def secrets(self) -> Iterator[Path]:
        """Yield the files that nobody but their owner may read."""
        for one in (self.ingest, self.settlement, self.dapp):
            if one is not None and one.key_file is not None:
                yield one.key_file
        if self.ingest is not None:
            yield from (path for path in (self.ingest.broker.key, self.ingest.influx.token_file) if path is not None)
        if self.dapp is not None and self.dapp.live.key is not None:
            yield self.dapp.live.key
        if self.settlement is not None:
            wallets = (self.settlement.operator_file, *self.settlement.member_files)
            yield from (account_path(wallet) for wallet in wallets)
        if self.authority is not None:
            yield self.authority / "ca.key"

    def files(self) -> Iterator[Path]:
        """Yield every file that the services were given or have made, besides databases and the evidence store."""
        yield from sorted(self.folder.glob("*.toml"))
        yield from self.secrets()
        yield self.deployment
        if self.ingest is not None:
            yield from self.ingest.broker.files()
            if (
                self.ingest.broker.certificate is not None
            ):  # the broker's own lie beside ours, where the installer put them
                folder = self.ingest.broker.certificate.parent
                yield from (folder / name for name in ("server.key", "server.crt"))
        if self.dapp is not None:
            yield from self.dapp.live.files()
        if self.authority is not None:
            yield from (self.authority / name for name in ("ca.crt", "crl.pem"))

    def databases(self) -> Iterator[Path]:
        """Yield the SQLite files, besides the ledger."""
        if self.dapp is not None:
            yield self.dapp.state_file
        if self.authority is not None:
            yield self.authority / "ca.db"
        if not urlsplit(self.rpc).scheme:  # an embedded chain, of a trial
            yield Path(self.rpc)

    def _same(self, name: str, found: dict[str, str], shown: Callable[[str], str] = str) -> str:
        if len(set(found.values())) > 1:
            said = ", ".join(f"{service}: {shown(value)}" for service, value in found.items())
            raise Fatal(f"{name}: the services do not have the same ({said})")
        return next(iter(found.values()), "")


def _read(kind: type[S], path: Path) -> S | None:
    return load(kind, path) if path.exists() else None
