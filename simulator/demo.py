"""The demo: a day of measured sunlight becomes tokens, by the real parts in the embedded profile."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from eth_account import Account
from eth_account.signers.local import LocalAccount

from edge_agent.agent import Agent
from edge_agent.compose import build_agent
from edge_agent.sensors.trace import Trace, interval_of
from ingest.config import BrokerSettings, HttpSettings, IngestSettings
from ingest.config import ChainSettings as IngestChain
from ingest.service import IngestService
from maxgreen.chain.client import connect
from maxgreen.chain.dao import Dao
from maxgreen.chain.deploying import deploy
from maxgreen.chain.deployment import Deployment, Governance
from maxgreen.chain.embedded import dev_secret
from maxgreen.chain.orders import Ends, LossTerms, SettlementContract
from maxgreen.chain.registry import admission, apply_for
from maxgreen.clock import FileClock
from maxgreen.errors import Fatal, MaxgreenError
from maxgreen.keyfile import create_key_file
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import open_engine
from maxgreen.protocol.keys import MemorySigner, key_id
from maxgreen.protocol.pack import PackError
from maxgreen.protocol.reasons import Reason
from maxgreen.protocol.system import SystemSpec
from maxgreen.protocol.work import nbits_of_credit
from maxgreen.store import FolderStore
from maxgreen.verify.rules import Limits
from settlement.audit import audit
from settlement.audit_chain import Pinned
from settlement.orders import open_line
from settlement.packs import open_pack
from settlement.periods import months_of, period_bounds
from settlement.service import Settled, SettlementService
from simulator.broker import EmbeddedBroker
from simulator.forger import send_forged_batch
from simulator.pages import run_beside, serve_pages
from simulator.site import RECEIVED_CHANNEL, SENT_CHANNEL, Site, make_key, miner_system, node_system, peak_mw

DAY_MS: Final = 86_400_000
SEAL_S: Final = 600  # one batch per proof window
SHARE_HASHES: Final = 64
SHARES: Final = 2
RESISTANCE_UOHM: Final = 150_000
MAX_LOSS_PPM: Final = 200_000
GOVERNANCE: Final = Governance(voting_delay_s=60, voting_period_s=3_600, timelock_s=3_600)
_WAIT_S: Final = 60
_AHEAD: Final = 4  # batches that may wait for a receipt


Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class DemoOptions:
    """What the user asked for; place in degrees, north and east positive."""

    trace: Trace
    channel: str
    folder: Path
    peak_w: float | None = None
    place: tuple[float, float] | None = None
    serve: bool = False


@dataclass(frozen=True)
class DemoResult:
    """What came of it; energies mW·s, amounts wei."""

    settled: tuple[Settled, ...]
    audits: tuple[str, ...]
    balances: dict[str, int]
    owners: dict[str, str]
    verdicts: dict[tuple[str, int], int]
    shares: int
    hashes: int
    online_windows: int
    windows: int
    reverse_mws: int  # against the direction of the line
    forged: str
    page: str | None

    @property
    def audit(self) -> str:
        """`ok`, or the first difference."""
        return next((found for found in self.audits if found != "ok"), "ok")

    def total(self, name: str) -> int:
        """Return the sum of a statement's number over periods and lines."""
        return sum(int(line[name]) for settled in self.settled for line in settled.closed.lines)

    def total_of(self, name: str) -> int:
        """Return the sum over the reasons of a statement's `held` or `disputed`."""
        return sum(sum(map(int, line[name].values())) for settled in self.settled for line in settled.closed.lines)

    def to_json(self) -> dict[str, Any]:
        """Return the result for scripts: decimal integers."""
        last = self.settled[-1]
        return {
            "sent_mws": self.total("sent_mws"),
            "received_mws": self.total("received_mws"),
            "loss_mws": self.total("loss_mws"),
            "expected_loss_mws": self.total("expected_loss_mws"),
            "payable_mws": self.total("payable_mws"),
            "held_mws": self.total_of("held"),
            "disputed_mws": self.total_of("disputed"),
            "reverse_mws": self.reverse_mws,
            "mint_wei": max(settled.minted_wei for settled in self.settled),
            "token_balance_wei": sum(self.balances.values()),
            "balances_wei": {self.owners[name]: balance for name, balance in self.balances.items()},
            "batches_accepted": sum(n for (verdict, _), n in self.verdicts.items() if verdict == "accepted"),
            "batches_rejected": sum(n for (verdict, _), n in self.verdicts.items() if verdict == "rejected"),
            "shares": self.shares,
            "hashes": self.hashes,
            "online_windows": self.online_windows,
            "windows": self.windows,
            "votes_for": last.votes[1],
            "forged": self.forged,
            "pack": str(last.pack),
            "statement": str(last.statement),
            "packs": [str(settled.pack) for settled in self.settled],
            "audit": self.audit,
        }


def run_demo(options: DemoOptions, progress: Progress, *, serving: Callable[[DemoResult], None]) -> DemoResult:
    """Run the demo; `serving` is called with the result while the pages are still up."""
    with ExitStack() as stack:
        return Demo(options, stack).run(progress, serving)


class Demo:
    """One run: everything it starts is ended by the exit stack."""

    def __init__(self, options: DemoOptions, stack: ExitStack) -> None:
        self._options = options
        self._stack = stack
        self._folder = _fresh_folder(options.folder)
        self._points = options.trace.channel(options.channel)
        self._clock = FileClock(self._folder / "clock")
        self._clock.sleep_until(self._points[0].t_ms - DAY_MS)
        self._accounts: list[LocalAccount] = [Account.from_key(dev_secret(k)) for k in range(7)]
        self._members = tuple(self._accounts[2:5])
        self._voters = self._members  # those in whose name settlement votes
        self._forget: Callable[[], None] = lambda: None  # what pages remember of the chain

    def run(self, progress: Progress, serving: Callable[[DemoResult], None]) -> DemoResult:
        """Run it; `serving` is called with the result while everything is still up."""
        progress("contracts", 0)
        deployment = self._deploy()
        backend = create_key_file(self._folder / "backend.pem")
        keys = {name: make_key(self._folder / name) for name in ("miner", "node")}
        broker = EmbeddedBroker()
        broker.start()
        self._stack.callback(broker.stop)
        ingest = self._start_ingest(deployment, backend, broker.port)
        page = self._start_pages(deployment, backend) if self._options.serve else None
        site = self._site(deployment, backend, broker.port)
        progress("enrolment", 0)
        tokens = self._enrol(deployment, keys, site, page)
        ends = self._approve_line(deployment, tokens)
        _until(lambda: _mirrored(ingest, keys), [], "the ledger did not learn of the systems")
        agents = self._agents(site)
        settlement = SettlementService(
            ingest.engine,
            deployment,
            backend,
            self._clock,
            self._accounts[1],
            self._voters,
            self._folder,
            FolderStore(self._folder / "evidence"),
        )
        forged = self._replay(agents, settlement, ends, broker.port, progress)
        settled = self._settle(settlement, progress)
        audits = self._audit(settled, deployment, progress)
        reverse_mws = agents["miner"].sealer.tip.meters[SENT_CHANNEL].reverse_mws
        result = self._result(ingest, deployment, tokens, settled, audits, forged, page, keys["miner"], reverse_mws)
        serving(result)
        return result

    def _deploy(self) -> Deployment:
        chain = connect(str(self._folder / "chain.db"), self._clock)
        members = [member.address for member in self._members]
        deployment = deploy(chain, self._accounts[0], self._accounts[1].address, members, GOVERNANCE)
        deployment.addresses.save(self._folder / "deployment.json")
        return deployment

    @property
    def _owners(self) -> dict[str, LocalAccount]:
        return {"miner": self._accounts[5], "node": self._accounts[6]}

    def _specs(self) -> dict[str, SystemSpec]:
        """Return what both systems apply with."""
        peak = peak_mw(self._points, self._options.peak_w)
        place = self._options.place
        place_deci = (round(place[0] * 10), round(place[1] * 10)) if place else None
        return {"miner": miner_system(peak, place_deci), "node": node_system(peak)}

    def _enrol(
        self, deployment: Deployment, keys: dict[str, MemorySigner], _site: Site, _page: str | None
    ) -> dict[str, int]:
        """Apply for both systems, and let the DAO admit them; return their tokens."""
        specs = self._specs()
        applications = [apply_for(deployment, self._owners[name], keys[name], specs[name]) for name in specs]
        Dao(deployment, self._clock).carry_out(admission(deployment, applications), self._members, wait=True)
        return {name: token_of(deployment, key) for name, key in keys.items()}

    def _approve_line(self, deployment: Deployment, tokens: dict[str, int]) -> Ends:
        """Let the DAO allow the line from the miner to the node, with what it may lose."""
        ends = Ends(tokens["miner"], SENT_CHANNEL, tokens["node"], RECEIVED_CHANNEL)
        terms = LossTerms(RESISTANCE_UOHM, 0, MAX_LOSS_PPM)
        proposal = SettlementContract(deployment).line_approval([(ends, terms)])
        Dao(deployment, self._clock).carry_out(proposal, self._members, wait=True)
        return ends

    def _start_ingest(self, deployment: Deployment, backend: MemorySigner, port: int) -> IngestService:
        settings = IngestSettings(
            ledger=f"sqlite:///{self._folder / 'ledger.db'}",
            broker=BrokerSettings(port=port),
            http=HttpSettings(port=0),
            chain=IngestChain(refresh_s=1),
        )
        engine = open_engine(settings.ledger)
        nbits = nbits_of_credit(SHARE_HASHES)
        with engine.begin() as connection:
            limits = Limits(pow_nbits_min=nbits, shares_per_window=SHARES, beacon_every_s=SEAL_S)
            Book(connection).set_limits(0, limits)
        service = IngestService(settings, engine, deployment, backend, self._clock)
        run_beside(self._stack, service, "ingest")
        return service

    def _start_pages(self, deployment: Deployment, backend: MemorySigner) -> str:
        """Serve the pages, with a wallet of the demo's accounts; return where."""
        engine = open_engine(f"sqlite:///{self._folder / 'ledger.db'}")
        names = ("operator", "member 1", "member 2", "member 3", "owner of the panel", "owner of the storage node")
        accounts = dict(zip(names, self._accounts[1:], strict=True))
        world = serve_pages(self._stack, self._folder, engine, deployment, self._clock, backend, accounts)
        self._forget = world.memory.forget
        return f"{world.url}/"

    def _site(self, deployment: Deployment, backend: MemorySigner, port: int) -> Site:
        return Site(
            network=deployment.network,
            backend_spki=backend.spki,
            port=port,
            trace=self._options.trace.path,
            channel=self._options.channel,
            interval_ms=interval_of(self._points),
            seal_s=SEAL_S,
            clock_file=self._folder / "clock",
            resistance_uohm=RESISTANCE_UOHM,
            nbits=nbits_of_credit(SHARE_HASHES),
            wait_shares=SHARES,
        )

    def _agents(self, site: Site) -> dict[str, Agent]:
        agents = {
            "miner": build_agent(site.miner(self._folder / "miner")),
            "node": build_agent(site.node(self._folder / "node")),
        }
        for agent in agents.values():
            self._stack.callback(agent.close)
            agent.start()
        return agents

    def _replay(
        self, agents: dict[str, Agent], settlement: SettlementService, ends: Ends, port: int, progress: Progress
    ) -> str:
        """Replay the trace through both agents in step; return what became of the forged batch."""
        pair = list(agents.values())
        _until(lambda: all(agent.can_mine for agent in pair), pair, "no beacon came from ingest")
        count = len(self._points)
        opened = False
        for number, ticks in enumerate(zip(*(agent.ticks() for agent in pair), strict=True)):
            for agent, tick in zip(pair, ticks, strict=True):
                agent.take(tick)
            quiet = not ticks[0].samples  # the clock is about to leap
            if quiet or not opened or any(agent.waiting > _AHEAD for agent in pair):
                _until(lambda: all(agent.waiting == 0 for agent in pair), pair, "no receipt came from ingest")
            if not opened and all(agent.sealer.tip.opened for agent in pair):
                open_line(settlement.engine, settlement.deployment, settlement.operator, ends)
                opened = True
            progress("sunlight", min(1.0, (number + 1) / count))
        for agent in pair:
            agent.sealer.stop()
        _until(lambda: all(agent.waiting == 0 for agent in pair), pair, "no receipt came from ingest")
        return self._forge(settlement, agents["miner"], port)

    def _forge(self, settlement: SettlementService, victim: Agent, port: int) -> str:
        """Send a batch that the miner's key did not sign; return ingest's verdict on it."""
        send_forged_batch(port, victim.device, settlement.deployment.network)
        deadline = time.monotonic() + _WAIT_S
        while time.monotonic() < deadline:
            with settlement.engine.connect() as connection:
                found = Book(connection).all_evidence(1)
            if found:
                return f"{Reason(found[0].reason).label}: {found[0].text}"
            time.sleep(0.02)
        raise Fatal("the forged batch was not judged within a minute")

    def _settle(self, settlement: SettlementService, progress: Progress) -> list[Settled]:
        """Close every month of the trace at its deadline, vote and mint."""
        settled = []
        months = months_of(self._points[0].t_ms, self._points[-1].t_ms)
        close_days = Limits().close_days
        for number, month in enumerate(months):
            progress(f"settlement of {month}", number / len(months))
            self._clock.sleep_until((period_bounds(month)[1] + close_days * 86_400) * 1000)
            settled.append(self._decided(settlement, month))
        return settled

    def _decided(self, settlement: SettlementService, month: str) -> Settled:
        """Close a month, let the members vote, and pay."""
        return settlement.run(month, wait=True)

    def _audit(self, settled: list[Settled], deployment: Deployment, progress: Progress) -> list[str]:
        """Audit every pack against the chain."""
        found = []
        previous: Path | None = None
        packs = [one.pack for one in settled if one.pack is not None]
        for number, pack in enumerate(packs):
            progress("audit", number / len(packs))
            try:
                before = open_pack(previous) if previous else None
                pinned = Pinned(addresses=deployment.addresses)
                audit(open_pack(pack), previous=before, chain=deployment.chain, pinned=pinned)
                found.append("ok")
            except PackError as error:
                found.append(str(error))
            previous = pack
        progress("audit", 1)
        return found

    def _result(
        self,
        ingest: IngestService,
        deployment: Deployment,
        tokens: dict[str, int],
        settled: list[Settled],
        audits: list[str],
        forged: str,
        page: str | None,
        miner: MemorySigner,
        reverse_mws: int,
    ) -> DemoResult:
        owners = {name: str(account.address) for name, account in self._owners.items()}
        functions: Any = deployment.energy_token(tokens["node"]).functions
        with ingest.engine.connect() as connection:
            book = Book(connection)
            verdicts = book.verdict_counts()
            rows = list(book.chain_of(key_id(miner.spki)))
        return DemoResult(
            settled=tuple(settled),
            audits=tuple(audits),
            balances={name: deployment.chain.call(functions.balanceOf(owner)) for name, owner in owners.items()},
            owners=owners,
            verdicts=verdicts,
            shares=sum(row.shares for row in rows),
            hashes=sum(int(row.hashes) for row in rows),
            online_windows=sum(line["online_windows"] for one in settled for line in one.closed.lines),
            windows=len({row.t0_ms // (SEAL_S * 1000) for row in rows if row.t0_ms is not None}),
            reverse_mws=reverse_mws,
            forged=forged,
            page=page,
        )


def token_of(deployment: Deployment, key: MemorySigner) -> int:
    """Return the token of a device's system; 0 as long as it has none."""
    functions: Any = deployment.registry.functions
    return int(deployment.chain.call(functions.tokenOf(key_id(key.spki))))


def _mirrored(ingest: IngestService, keys: dict[str, MemorySigner]) -> bool:
    """Tell whether the ledger knows these devices."""
    with ingest.engine.connect() as connection:
        known = {one.record.device for one in Book(connection).all_devices()}
    return {key_id(key.spki) for key in keys.values()} <= known


def _fresh_folder(folder: Path) -> Path:
    """Return an empty folder for the demo; what an earlier demo left there is removed, nothing else is."""
    marker = folder / "demo.json"
    if folder.exists() and any(folder.iterdir()):
        if not marker.exists():
            raise Fatal(f"{folder}: not empty, and not from an earlier demo; name another folder with --dir")
        _remove_tree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text("{}\n")
    return folder.resolve()


def _remove_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()


def _until(done: Callable[[], bool], agents: list[Agent], missing: str) -> None:
    """Exchange messages until something is so; MaxgreenError after a minute."""
    deadline = time.monotonic() + _WAIT_S
    while not done():
        for agent in agents:
            agent.exchange(0.005)
        if not agents:
            time.sleep(0.05)
        if time.monotonic() > deadline:
            raise MaxgreenError(f"{missing} within {_WAIT_S} s")
