"""The guide for people, docs/people.md, word for word: six people, six folders, a real anvil, real services."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edge_agent.sensors.trace import read_trace
from maxgreen.chain.client import connect
from maxgreen.clock import FileClock
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import open_engine
from maxgreen.protocol.work import nbits_of_credit
from maxgreen.verify.rules import Limits
from simulator.broker import EmbeddedBroker
from tests.conftest import ROOT, TRACES, free_port, need, stop, wait_for

MAXGREEN = Path(sys.executable).parent / "maxgreen"
GUIDE = ROOT / "docs/people.md"
LINE = re.compile(r"^    (op|ana|bo|m1|m2|m3)\$ (.+)$", re.MULTILINE)
PEOPLE = ("op", "ana", "bo", "m1", "m2", "m3")
ROWS = slice(600, 720)  # two hours around noon
CLOSED_MS = 1_448_928_000_000 + 8 * 86_400_000
AGENT = """
network = "{network}"
backend_keys = ["{backend}"]
state_dir = "{state}"
[[channels]]
number = 1
role = "{role}"
sensor = "replay"
trace_channel = "x"
[replay]
trace = "{trace}"
"""


@dataclass
class Town:
    """People in folders, a chain whose time the clock file leads, a broker, an ingest."""

    folder: Path
    processes: dict = field(default_factory=dict)

    def __post_init__(self):
        source = TRACES[0].read_text().splitlines()
        self.trace = self.folder / "trace.csv"
        self.trace.write_text("\n".join([source[0], *source[1:][ROWS]]) + "\n")
        self.points = read_trace(self.trace).channel(None)
        self.clock_file = self.folder / "clock"
        self.clock = FileClock(self.clock_file)
        self.clock.sleep_until(self.points[0].t_ms - 86_400_000)
        self.broker = EmbeddedBroker()
        self.broker.start()
        port = free_port()
        anvil = need(ROOT / "contracts/node_modules/.bin/anvil", "anvil is not installed (make services)")
        started_s = self.clock.now_ms() // 1000
        self.start("anvil", self.folder, anvil, "--port", port, "--silent", "--timestamp", started_s)
        self.rpc = f"http://127.0.0.1:{port}"
        self.chain = connect(self.rpc, self.clock)
        wait_for(lambda: self.chain.chain_id, what="anvil")
        self.addresses, self.device = {}, ""
        for name in PEOPLE:
            (self.folder / name).mkdir()
        (self.folder / "password").write_text("correct horse\n")

    def start(self, name, folder, *command):
        log = (self.folder / f"{name}.log").open("a")
        self.processes[name] = subprocess.Popen(list(map(str, command)), cwd=folder, stdout=log, stderr=log)

    def environment(self, name):
        return {
            **os.environ,
            **{who.upper(): address for who, address in self.addresses.items()},
            "DEVICE": self.device,
            "PATH": f"{MAXGREEN.parent}:{os.environ['PATH']}",
            "HOME": str(self.folder / name),
            "MAXGREEN_WALLETS": str(self.folder / name / "wallets"),
            "MAXGREEN_PASSWORD_FILE": str(self.folder / "password"),
            "MAXGREEN_RPC": self.rpc,
            "MAXGREEN_ACCOUNT": name,
            "MAXGREEN_CLOCK_FILE": str(self.clock_file),
            "COLUMNS": "200",
        }

    def run(self, name, command):
        """Run a line of the guide as a person; return what it printed."""
        self.keep_time()
        done = subprocess.run(
            ["/bin/sh", "-ec", command], cwd=self.folder / name, env=self.environment(name),
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, f"{command}\n{done.stderr}"
        assert done.returncode == 0, f"{name}$ {command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def keep_time(self, seconds=0):
        """Let the chain's time follow the clock, or both go on."""
        chain_s = self.chain.newest_block().time_s
        now_s = max(self.clock.now_ms() // 1000, chain_s) + seconds
        self.clock.sleep_until(now_s * 1000)
        if now_s > chain_s:
            for method, *values in (("evm_setNextBlockTimestamp", now_s), ("evm_mine",)):
                self.chain.web3.provider.make_request(method, values)

    def after(self, name, command):
        """Do what happens between the lines: addresses and files go from one to the other, devices measure."""
        if command.startswith("maxgreen wallet new"):
            self.addresses[name] = self.run(name, f"maxgreen wallet show {name}").strip()
            self.chain.web3.provider.make_request("anvil_setBalance", [self.addresses[name], hex(10**20)])
        elif command.startswith("maxgreen chain deploy"):
            self.hand_out("op", "deployment.json")
            self.begin_services()
        elif command.startswith("maxgreen settle r"):
            for file in ("pack.zip", "order.json"):
                self.hand_out(f"op/settlement/{self.period}", file)

    def hand_out(self, folder, file):
        data = (self.folder / folder / file).read_bytes()
        for name in PEOPLE:
            (self.folder / name / file).write_bytes(data)

    def begin_services(self):
        """The operator's ingest, and two agents' keys and settings."""
        engine = open_engine(f"sqlite:///{self.folder}/ledger.db")
        with engine.begin() as connection:
            nbits = nbits_of_credit(16)
            limits = Limits(pow_nbits_min=nbits, shares_per_window=10, beacon_every_s=86_400)
            Book(connection).set_limits(0, limits)
        engine.dispose()
        common = f'ledger = "sqlite:///{self.folder}/ledger.db"\nclock_file = "{self.clock_file}"\n'
        common += 'key_file = "backend.pem"\n'
        chain = f'rpc = "{self.rpc}"\ndeployment = "deployment.json"\n'
        ingest = f"{common}[broker]\nport = {self.broker.port}\n[chain]\n{chain}refresh_s = 1\n[http]\nport = 0\n"
        (self.folder / "op/ingest.toml").write_text(ingest)
        (self.folder / "op/settlement.toml").write_text(f'{common}{chain}operator_file = "op"\n')
        self.simulate("--keys-only")
        self.start("ingest", self.folder / "op", MAXGREEN, "ingest", "run", "--config", "ingest.toml")
        wait_for(lambda: (self.folder / "op/backend.pem").exists(), 120, "ingest")
        network = json.loads((self.folder / "op/deployment.json").read_text())["network"]
        for name, device, role in (("ana", "miner", "sent"), ("bo", "node", "received")):
            state = self.folder / "op/site" / device
            text = AGENT.format(network=network, backend="00" * 91, state=state, role=role, trace=self.trace)
            (self.folder / name / "agent.toml").write_text(text.replace("00" * 91, self.backend()))

    def backend(self):
        from maxgreen.keyfile import load_key_file

        return load_key_file(self.folder / "op/backend.pem").spki.hex()

    def simulate(self, *more):
        command = [
            MAXGREEN, "simulate", "site", "--trace", self.trace, "--dir", "site", "--deployment", "deployment.json",
            "--backend-key", "backend.pem", "--port", self.broker.port, "--clock-file", self.clock_file,
            "--seal-s", 60, "--nbits", nbits_of_credit(16), *more,
        ]  # fmt: skip
        done = subprocess.run(
            list(map(str, command)), cwd=self.folder / "op", capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stderr

    @property
    def period(self):
        return "2015-11"

    def close(self):
        for process in reversed(self.processes.values()):
            stop(process)
        self.broker.stop()


@pytest.fixture
def town(tmp_path):
    made = Town(tmp_path)
    yield made
    made.close()


@pytest.mark.services
@pytest.mark.timeout(2_400)  # as long as it takes on a busy machine
def test_the_guide_works_word_for_word(town):
    said = {}
    for name, command in LINE.findall(GUIDE.read_text()):
        if command.startswith("sleep "):
            town.keep_time(int(command.split()[1]))
            continue
        if command.startswith("maxgreen settle open-line"):
            town.clock.sleep_until(town.points[0].t_ms - 60_000)
            town.keep_time()
            town.simulate()
            town.keep_time()
        elif command.startswith("maxgreen settle days"):
            town.clock.sleep_until(CLOSED_MS)
            town.keep_time()
        said[" ".join(command.split()[1:3])] = found = town.run(name, command)
        if command.startswith("maxgreen owner apply") and name == "ana" and "device " in found:
            town.device = found.split("device ")[1].split()[0]
        town.after(name, command)
    status = json.loads(town.run("ana", "maxgreen owner status --json"))
    [line] = status["lines"]
    assert int(line["paid_mws"]) > 0
    assert line["credit_mws"] == "0"
    assert int(status["tokens_wei"]["energy 2"]) > 0
    assert "1 line-day of 1 line derived" in said["settle days"]
    assert "would send: applyFor" in said["owner apply"] or "application" in said["owner apply"]
    assert "nothing is" not in said["operator orders"]
    assert "seen both" not in said["dao show"]  # the text decides nothing: what is shown is decoded
    assert "everything is as it should be" in said["chain doctor"] or "odd:" in said["chain doctor"]
    assert "ok" in said["audit pack.zip"]
    assert "order 1: rejected" in said["operator orders"]
    assert "order 2: approved" in said["operator orders"]
    engine = open_engine(f"sqlite:///{town.folder}/ledger.db")
    with engine.begin() as connection:
        [old] = Book(connection).replaced(1_448_928_000)
        assert bytes(old.run) != bytes(Book(connection).period(1_448_928_000).run)
    engine.dispose()


def test_every_command_of_the_table_is_there():
    """A row may name only commands that exist."""
    text = GUIDE.read_text().split("## Every use case and its command")[1]
    known = {}
    for words in re.findall(r"`((?:owner|node|dao|operator|settle|agent|ingest) [a-z-]+)", text):
        top, name = words.split()
        if top not in known:
            done = subprocess.run([MAXGREEN, top, "--help"], capture_output=True, text=True, timeout=60)
            known[top] = done.stdout
        assert re.search(rf"\b{name}\b", known[top]), words
