"""One settlement run: close, order, vote, pay, write statement and pack."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eth_account.signers.local import LocalAccount
from sqlalchemy import Engine

from maxgreen.chain.client import account_from_file, connect
from maxgreen.chain.code import verify
from maxgreen.chain.dao import ProposalState
from maxgreen.chain.deployment import Addresses, Deployment
from maxgreen.chain.orders import SettlementContract
from maxgreen.clock import Clock, make_clock
from maxgreen.errors import Fatal
from maxgreen.keyfile import load_key_file
from maxgreen.ledger.engine import open_engine
from maxgreen.protocol.keys import Signer
from maxgreen.protocol.pack import write_pack
from settlement.close import Closed, close_period
from settlement.config import SettlementSettings
from settlement.orders import Payer, Placed
from settlement.page import statement_page


@dataclass(frozen=True)
class Settled:
    """How far a run came."""

    closed: Closed
    placed: tuple[Placed, ...]
    state: ProposalState | None
    votes: tuple[int, int, int]
    minted_wei: int
    refused: dict[str, str]  # by line, what the chain said
    pack: Path
    statement: Path
    page: Path

    def summary(self) -> dict[str, Any]:
        """Return the run for scripts; energies mW·s, amounts wei, as decimal strings."""
        return {
            "period": self.closed.period,
            "orders": [p.order_id for p in self.placed],
            "state": self.state.name.lower() if self.state is not None else "nothing to vote on",
            "votes_for": self.votes[1],
            "minted_wei": str(self.minted_wei),
            "refused": self.refused,
            "pack": str(self.pack),
            "statement": str(self.statement),
        }


class SettlementService:
    """What a run needs."""

    def __init__(
        self,
        engine: Engine,
        deployment: Deployment,
        signer: Signer,
        clock: Clock,
        operator: LocalAccount,
        members: tuple[LocalAccount, ...],
        output_dir: Path,
    ) -> None:
        self.engine = engine
        self.deployment = deployment
        self.operator = operator
        self._signer = signer
        self._clock = clock
        self._output_dir = output_dir
        self._contract = SettlementContract(deployment)
        self._payer = Payer(deployment, clock, operator, members)

    @classmethod
    def from_settings(cls, settings: SettlementSettings) -> "SettlementService":
        """Compose the service that settings describe."""
        clock = make_clock(settings.clock_file)
        if not settings.key_file.exists():
            raise Fatal(f"key_file {settings.key_file}: not there; the ingest service makes it")
        deployment = Deployment(connect(settings.rpc, clock), Addresses.load(settings.deployment))
        verify(deployment.chain, deployment.addresses)
        return cls(
            open_engine(settings.ledger),
            deployment,
            load_key_file(settings.key_file),
            clock,
            account_from_file(settings.operator_file),
            tuple(account_from_file(path) for path in settings.member_files),
            settings.output_dir,
        )

    def run(self, period: str, *, wait: bool) -> Settled:
        """Take a period as far as it goes; NotReadyError when it cannot be closed yet."""
        closed = close_period(
            self.engine, self._contract, self._signer, self.deployment.network, period, self._clock.now_ms()
        )
        placed = self._payer.place(closed)
        state = self._payer.decide(closed, placed, wait=wait)
        self._payer.collect(placed)
        folder = self._output_dir / period
        folder.mkdir(parents=True, exist_ok=True)
        pack = _write(folder / "pack.zip", write_pack(self._payer.pack_entries(closed, placed)))
        statement = _write(folder / "statement.json", closed.entries["statement.json"])
        page = _write(folder / "statement.html", statement_page(closed.entries["statement.json"]).encode())
        return Settled(
            closed,
            tuple(placed),
            state,
            self._payer.votes(closed, placed),
            self._payer.minted_wei(placed),
            dict(self._payer.refused),
            pack,
            statement,
            page,
        )


def _write(path: Path, data: bytes) -> Path:
    """Write a file whole or not at all."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(data)
    fresh.replace(path)
    return path
