"""One settlement run: close, order, vote, pay, write statement and pack."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from eth_account.signers.local import LocalAccount
from sqlalchemy import Engine

from maxgreen.actions.wallet import load_account
from maxgreen.chain.client import connect
from maxgreen.chain.code import verify
from maxgreen.chain.dao import ProposalState
from maxgreen.chain.deployment import Addresses, Deployment
from maxgreen.chain.orders import OrderStatus, SettlementContract
from maxgreen.clock import Clock, make_clock
from maxgreen.errors import Fatal, UsageError
from maxgreen.keyfile import load_key_file
from maxgreen.ledger import rejections
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import open_engine, reader
from maxgreen.protocol.backend import Rejection
from maxgreen.protocol.keys import Signer
from maxgreen.protocol.pack import ORDER, RUN, PackError
from maxgreen.store import Store, open_store
from settlement.close import Closer, DerivedDays
from settlement.config import SettlementSettings
from settlement.orders import Payer, Posted
from settlement.packs import keep_run, line_entries, write_pack_of
from settlement.page import statement_csv, statement_page
from settlement.run import Run
from settlement.statement import read_windows

_log = logging.getLogger(__name__)
_PACK: Final = "pack.zip"
_PAGE: Final = "statement.html"
_FEW: Final = 200  # lines whose evidence and page are one file each; those of a fleet would be gigabytes


@dataclass(frozen=True)
class Settled:
    """How far a run came."""

    closed: Run
    posted: Posted | None
    state: ProposalState | None
    votes: tuple[int, int, int]
    minted_wei: int
    refused: dict[str, str]  # by line, what the chain said
    pack: Path | None  # None of a fleet: the store has it
    statement: Path
    page: Path | None

    def summary(self) -> dict[str, Any]:
        """Return the run for scripts; energies mW·s, amounts wei, as decimal strings."""
        return {
            "period": self.closed.period,
            "order": self.posted.order_id if self.posted is not None else None,
            "state": self.posted.status.label if self.posted is not None else "nothing payable",
            "vote": self.state.name.lower() if self.state is not None else None,
            "votes_for": self.votes[1],
            "minted_wei": str(self.minted_wei),
            "refused": self.refused,
            "next": self.next_step(),
            "pack": None if self.pack is None else str(self.pack),
            "statement": str(self.statement),
        }

    @property
    def is_paid(self) -> bool:
        """Whether nothing of it waits any more."""
        return self.posted is None or (self.posted.status is OrderStatus.APPROVED and not self.refused)

    def next_step(self) -> str:
        """Say what comes next, and whose turn it is."""
        posted = self.posted
        if posted is None:
            return "nothing: no line has anything new to pay; what is held counts later when its reason is gone"
        match posted.status:
            case OrderStatus.POSTED if self.state is not None:
                return f"the DAO's vote is {self.state.name.lower()}; the next run goes on"
            case OrderStatus.POSTED:
                return f"a member of the DAO: maxgreen dao approve {posted.order_id}; then the members vote"
            case OrderStatus.REJECTED:
                return (
                    f"the operator: the DAO rejected it ({posted.code}: {posted.text}); record decisions with "
                    f"'maxgreen ingest decide', then: maxgreen settle revise --period {self.closed.period}; "
                    "or the next period contains what stays payable"
                )
            case OrderStatus.APPROVED if self.refused:
                return "the lines named as refused stay claimable; the next run tries again"
            case OrderStatus.APPROVED:
                return "nothing: everything is paid"
            case _:
                return "the next run posts it again"


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
        store: Store,
        evidence: str = "",
        processes: int = 1,
    ) -> None:
        self.engine = engine
        self.deployment = deployment
        self.operator = operator
        self._clock = clock
        self._output_dir = output_dir
        self._store = store
        self._contract = SettlementContract(deployment)
        self._closer = Closer(engine, store, self._contract, signer, deployment.network, processes=processes)
        self._payer = Payer(deployment, clock, operator, members, evidence)

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
            load_account(settings.operator_file),
            tuple(map(load_account, settings.member_files)),
            settings.output_dir,
            open_store(settings.evidence),
            settings.evidence_url,
            settings.processes,
        )

    def run(self, period: str, *, wait: bool) -> Settled:
        """Take a period as far as it goes; NotReadyError when it cannot be closed yet."""
        return self._settle(self._closer.close(period, self._clock.now_ms()), wait=wait)

    def derive_days(self) -> DerivedDays:
        """Derive the line-days that are over, so that a close finds them."""
        return self._closer.derive_days(self._clock.now_ms())

    def revise(self, period: str, *, wait: bool) -> Settled:
        """Close a period again whose order was rejected or withdrawn or lapsed, and go on; UsageError says why not."""
        now_ms = self._clock.now_ms()
        before = self._closer.close(period, now_ms)
        there = self._payer.there(before)
        if there is not None and there.status in {OrderStatus.POSTED, OrderStatus.APPROVED}:
            first = f"; withdraw it first: maxgreen operator withdraw {there.order_id}"
            raise UsageError(
                f"{period}: its order {there.order_id} is {there.status.label}"
                f"{first if there.status is OrderStatus.POSTED else ''}"
            )
        revised = self._closer.revise(before, now_ms)
        rejections.over(self.engine, revised.until_s)
        return self._settle(revised, wait=wait)

    def _settle(self, closed: Run, *, wait: bool) -> Settled:
        keep_run(self._store, closed, None)  # whoever sees an order finds its evidence
        posted = self._payer.post(closed)
        if posted is not None:
            self._payer.wait_final(posted)
        state, votes = None, (0, 0, 0)
        if posted is not None:
            state = self._payer.decide(closed, posted, wait=wait)
            votes = self._payer.votes(closed, posted)
            self._payer.claim(closed, posted)
            posted = self._payer.look(posted)
        folder = self._output_dir / closed.period
        folder.mkdir(parents=True, exist_ok=True)
        order = None if posted is None else self._payer.order_entry(closed, posted)
        keep_run(self._store, closed, order)
        few = len(closed.lines) <= _FEW
        if not few:  # of a close before this one
            for name in (_PACK, _PAGE):
                (folder / name).unlink(missing_ok=True)
        pack = folder / _PACK if few else None
        if pack and not (pack.exists() and _holds(folder / RUN, closed.data) and _holds(folder / ORDER, order)):
            self._write_pack(closed, order, pack)
        if order is not None:  # for whoever claims; it says nothing of a household's profile
            _write(folder / ORDER, order)
        statement = _write(folder / RUN, closed.data)
        page = _write(folder / _PAGE, self._page(closed, order).encode()) if few else None
        _write(folder / "statement.csv", statement_csv(closed.period, closed.lines).encode())
        if posted is not None:
            tell_devices(self.engine, self._contract, closed, posted)
        return Settled(
            closed,
            posted,
            state,
            votes,
            self._payer.minted_wei(closed),
            dict(self._payer.refused),
            pack,
            statement,
            page,
        )

    def _write_pack(self, closed: Run, order: bytes | None, pack: Path) -> None:
        try:
            write_pack_of(self._store, closed, order, pack)
        except PackError as error:  # too large for one file
            pack.unlink(missing_ok=True)
            _log.warning("%s is not written: %s", pack, error)

    def _page(self, closed: Run, order: bytes | None) -> str:
        with reader(self.engine).begin() as connection:
            owners = {str(known.token): known.owner for known in Book(connection).all_devices()}
        lines = [
            (line, read_windows(line_entries(self._store, bytes.fromhex(line["manifest"])))) for line in closed.lines
        ]
        posted = None if order is None else json.loads(order)
        return statement_page(closed.period, self.deployment.network, lines, posted, owners)


def tell_devices(engine: Engine, contract: SettlementContract, closed: Run, posted: Posted) -> None:
    """Let the receipts of a run's devices say that the DAO rejected its order, or nobody's any more that it did.

    What was rejected is part of every later order: so one that was approved settles those before it.
    """
    if posted.status is OrderStatus.APPROVED:
        rejections.over(engine, closed.until_s)
    elif posted.status is OrderStatus.REJECTED and closed.until_s > contract.claimable_until_s():
        tokens = {int(line[end]) for line in closed.lines for end in ("miner", "node")}
        with reader(engine).begin() as connection:
            devices = {one.record.device for one in Book(connection).all_devices() if one.token in tokens}
        rejections.tell(engine, devices, Rejection(closed.until_s, posted.code, posted.text))


def _holds(path: Path, data: bytes | None) -> bool:
    return (path.read_bytes() if path.exists() else None) == data


def _write(path: Path, data: bytes) -> Path:
    """Write a file whole or not at all."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(data)
    fresh.replace(path)
    return path
