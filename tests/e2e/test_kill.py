"""Any process may be killed at any instant: separate processes on a two-hour trace, SIGKILL at random moments."""

import json
import random
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from eth_account import Account

from edge_agent.sensors.trace import read_trace
from maxgreen.chain.client import connect
from maxgreen.chain.dao import Dao
from maxgreen.chain.deployment import Addresses, Deployment
from maxgreen.chain.embedded import dev_secret
from maxgreen.chain.orders import Ends, LossTerms, SettlementContract
from maxgreen.chain.registry import admission, apply_for
from maxgreen.clock import FileClock
from maxgreen.keyfile import load_key_file
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import open_engine
from maxgreen.protocol.batch import parse_batch
from maxgreen.protocol.keys import key_id
from maxgreen.protocol.work import nbits_of_credit
from maxgreen.verify.rules import Limits
from settlement.audit import audit
from settlement.packs import open_pack
from simulator.broker import EmbeddedBroker
from simulator.site import miner_system, node_system, peak_mw
from tests.conftest import TRACES, free_port, stop, wait_for

MAXGREEN = Path(sys.executable).parent / "maxgreen"
ROWS = slice(600, 720)  # two hours around noon
PERIOD = "2015-11"
UNTIL_MS = 1_448_928_000_000
CLOSE_MS = 8 * 86_400_000


@dataclass
class Site:
    """Broker in this process; chain, ingest, both agents and settlement in processes of their own."""

    folder: Path
    processes: dict = field(default_factory=dict)

    def __post_init__(self):
        self.folder.mkdir(parents=True)
        source = TRACES[0].read_text().splitlines()
        self.trace = self.folder / "trace.csv"
        self.trace.write_text("\n".join([source[0], *source[1:][ROWS]]) + "\n")
        self.points = read_trace(self.trace).channel(None)
        self.clock_file = self.folder / "clock"
        self.clock = FileClock(self.clock_file)
        self.clock.sleep_until(self.points[0].t_ms - 86_400_000)
        self.broker = EmbeddedBroker()
        self.broker.start()
        self.port = free_port()
        self.accounts = [Account.from_key(dev_secret(k)) for k in range(7)]
        for k, name in ((0, "deployer"), (1, "operator"), (2, "m0"), (3, "m1"), (4, "m2")):
            path = self.folder / f"{name}.key"
            path.touch(0o600)
            path.write_text(dev_secret(k).hex())
        self.rpc = f"http://127.0.0.1:{self.port}"
        self.start("chain", "chain", "run", "--file", "chain.db", "--port", self.port, "--clock-file", self.clock_file)
        self.chain = connect(self.rpc, self.clock)
        wait_for(self._chain_answers, what="the chain")
        self.run(
            "chain", "deploy", "--rpc", self.rpc, "--deployer", "deployer.key", "--operator", self.accounts[1].address,
            *[x for m in self.accounts[2:5] for x in ("--member", m.address)], "--deployment", "deployment.json",
            "--voting-delay-s", 60, "--voting-period-s", 600, "--timelock-s", 60,
        )  # fmt: skip
        self.deployment = Deployment(self.chain, Addresses.load(self.folder / "deployment.json"))
        self._settings()
        self._enrol()
        engine = open_engine(f"sqlite:///{self.folder}/ledger.db")
        with engine.begin() as connection:
            nbits = nbits_of_credit(16)
            Book(connection).set_limits(0, Limits(pow_nbits_min=nbits, shares_per_window=10, beacon_every_s=86_400))
        engine.dispose()
        # the one beacon of the test is issued here, so that no agent can outrun it
        self.clock.sleep_until(self.points[0].t_ms - 60_000)

    def _chain_answers(self):
        from maxgreen.errors import Retryable

        try:
            return self.chain.chain_id
        except Retryable:
            return None

    def _settings(self):
        (self.folder / "ingest.toml").write_text(f"""
ledger = "sqlite:///{self.folder}/ledger.db"
key_file = "backend.pem"
clock_file = "{self.clock_file}"
[broker]
port = {self.broker.port}
[chain]
rpc = "{self.rpc}"
deployment = "deployment.json"
refresh_s = 1
[http]
port = 0
""")
        (self.folder / "settlement.toml").write_text(f"""
ledger = "sqlite:///{self.folder}/ledger.db"
key_file = "backend.pem"
clock_file = "{self.clock_file}"
rpc = "{self.rpc}"
deployment = "deployment.json"
operator_file = "operator.key"
member_files = ["m0.key", "m1.key", "m2.key"]
wait = true
""")

    def _enrol(self):
        self.run(*self.simulate(), "--keys-only")
        keys = [load_key_file(self.folder / "site" / name / "signing.pem") for name in ("miner", "node")]
        self.devices = [key_id(key.spki) for key in keys]
        peak = peak_mw(self.points, None)
        systems = [miner_system(peak, None), node_system(peak)]
        applications = [
            apply_for(self.deployment, account, key, system)
            for account, key, system in zip(self.accounts[5:7], keys, systems, strict=True)
        ]
        line = SettlementContract(self.deployment).line_approval([(Ends(1, 1, 2, 0), LossTerms(150_000, 0, 200_000))])
        for proposal in (admission(self.deployment, applications), line):
            Dao(self.deployment, self.clock).carry_out(proposal, self.accounts[2:5], wait=True)

    def simulate(self):
        return (
            "simulate", "site", "--trace", self.trace, "--dir", "site", "--deployment", "deployment.json",
            "--backend-key", "backend.pem", "--port", self.broker.port, "--clock-file", self.clock_file,
            "--seal-s", 60, "--nbits", nbits_of_credit(16),
        )  # fmt: skip

    def start(self, name, *arguments):
        log = (self.folder / f"{name}.log").open("a")
        self.processes[name] = subprocess.Popen(
            [MAXGREEN, *map(str, arguments)], cwd=self.folder, stdout=log, stderr=log
        )
        return self.processes[name]

    def run(self, *arguments, status=0):
        done = subprocess.run(
            [MAXGREEN, *map(str, arguments)], cwd=self.folder, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    def ingest(self):
        self.start("ingest", "ingest", "run", "--config", "ingest.toml")

    def kill(self, name):
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def delivered(self):
        """Return whether the agents have ended: everything that they sealed has a receipt."""
        return self.processes["agents"].poll() is not None

    def settle(self):
        self.clock.sleep_until(UNTIL_MS + CLOSE_MS)
        return json.loads(self.run("settle", "run", "--period", PERIOD, "--config", "settlement.toml", "--json"))

    def open_line(self):
        self.run("settle", "open-line", "--miner", 1, "--node", 2, "--config", "settlement.toml")

    def content(self):
        """Return what the ledger holds of each device: seq, verdict, time, registers; without work and signatures."""
        engine = open_engine(f"sqlite:///{self.folder}/ledger.db")
        with engine.begin() as connection:
            rows = [(k, row) for k, d in enumerate(self.devices) for row in Book(connection).chain_of(d)]
            found = []
            for device, row in rows:
                batch = parse_batch(bytes(row.message)).batch
                found.append((device, row.seq, row.verdict, row.reason, row.t0_ms, batch.channels))
        engine.dispose()
        return found

    def spooled(self, name):
        """Return the batches that a device holds; none before its spool has tables (it may have been killed then)."""
        with sqlite3.connect(self.folder / "site" / name / "spool.db") as db:
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'batches'").fetchone():
                return []
            return [bytes(m) for (m,) in db.execute("SELECT message FROM batches ORDER BY seq")]

    def close(self):
        for process in self.processes.values():
            stop(process)
        self.broker.stop()


@pytest.fixture
def make_site(tmp_path):
    sites = []

    def make(name):
        sites.append(Site(tmp_path / name))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


def check_audit(site, result):
    assert audit(open_pack(site.folder / result["pack"]), chain=site.chain).checks
    statement = json.loads((site.folder / result["statement"]).read_text())
    assert sum(int(line["mint_wei"]) for line in statement["lines"]) == int(result["minted_wei"]) > 0
    assert result["order"] == 1
    assert site.chain.call(site.deployment.settlement.functions.orders()) == 1


def deliver(site, *, kills=0, victim="ingest", rng=None):
    """Run the agents to their end while a victim is killed `kills` times at random moments."""
    site.ingest()
    wait_for(lambda: (site.folder / "backend.pem").exists(), 300, "ingest")
    site.start("agents", *site.simulate())
    for _ in range(kills):
        time.sleep(rng.uniform(0.5, 2.0))
        site.kill(victim)
        if victim == "ingest":
            site.ingest()
        else:
            site.start("agents", *site.simulate())
    wait_for(site.delivered, 900, "delivery")
    assert site.processes["agents"].returncode == 0, (site.folder / "agents.log").read_text()


@pytest.mark.timeout(2_400)  # as long as it takes on a busy machine
@pytest.mark.rule("P-ING-5", "P-RCT-1")
def test_ingest_and_settlement_killed_twenty_times_end_as_undisturbed(make_site):
    calm, rough, rng = make_site("calm"), make_site("rough"), random.Random(7)
    deliver(calm)
    calm.open_line()
    expected = calm.settle()
    deliver(rough, kills=10, rng=rng)
    rough.open_line()
    rough.clock.sleep_until(UNTIL_MS + CLOSE_MS)
    for _ in range(10):
        rough.start("settle", "settle", "run", "--period", PERIOD, "--config", "settlement.toml", "--json")
        time.sleep(rng.uniform(1.2, 4.0))
        rough.kill("settle")
    result = rough.settle()
    assert rough.content() == calm.content()
    assert result["minted_wei"] == expected["minted_wei"]
    for site, one in ((calm, expected), (rough, result)):
        check_audit(site, one)
    assert rough.settle()["minted_wei"] == expected["minted_wei"]


@pytest.mark.timeout(2_400)  # as long as it takes on a busy machine
@pytest.mark.rule("P-BAT-2", "P-BAT-3")
def test_agents_killed_twenty_times_lose_and_change_nothing_that_was_signed(make_site):
    site, rng = make_site("site"), random.Random(11)
    site.ingest()
    wait_for(lambda: (site.folder / "backend.pem").exists(), 300, "ingest")
    signed = {"miner": [], "node": []}
    for _ in range(20):
        site.start("agents", *site.simulate())
        time.sleep(rng.uniform(0.8, 2.2))
        site.kill("agents")
        for name, before in signed.items():
            if (site.folder / "site" / name / "spool.db").exists():
                now = site.spooled(name)
                assert now[: len(before)] == before
                signed[name] = now
    site.start("agents", *site.simulate())
    wait_for(site.delivered, 900, "delivery")
    site.open_line()
    result = site.settle()
    check_audit(site, result)
    content = site.content()
    assert {verdict for _, _, verdict, _, _, _ in content} == {"accepted"}
    for device in (0, 1):
        seqs = [seq for d, seq, *_ in content if d == device]
        assert seqs == list(range(len(seqs)))
    assert site.spooled("miner")[: len(signed["miner"])] == signed["miner"]
