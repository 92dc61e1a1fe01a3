"""Energy is taken out: two real agents, a relay, a broker, ingest and a chain, by the commands that people give."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_agent.identity import Identities
from edge_agent.keystore import KeySettings
from maxgreen.chain.market import Exchange, RequestStatus, balances, coin, wei_of
from maxgreen.keyfile import load_key_file
from maxgreen.protocol.keys import key_id
from tests.chain import world as worlds
from tests.chain.test_market import ERROR_PPM, Market
from tests.conftest import ROOT, need, running_anvil, stop, wait_for
from tests.e2e.pi import LINE_BUS, RELAY_PIN
from tests.services import mosquitto_server

MAXGREEN = Path(sys.executable).parent / "maxgreen"
AGENT = """
network = "{network}"
backend_keys = ["{backend}"]
state_dir = "{folder}/state"
metrics_port = 0
interval_ms = 200
[broker]
port = {port}
[work]
enabled = false
[[channels]]
number = {first}
role = "{first_role}"
[[channels]]
number = {line}
role = "{line_role}"
bus = {bus}
"""
RELAY = f"[board]\nrelay_pin = {RELAY_PIN}\nrelay_channel = 3\n"
INGEST = """
ledger = "sqlite:///{folder}/ledger.db"
key_file = "{folder}/backend.pem"
[broker]
port = {port}
[chain]
rpc = "{rpc}"
deployment = "{folder}/deployment.json"
refresh_s = 1
[http]
port = 0
"""
MARKET_S = 4 * 86_400  # what the market before it lives through, on the chain


class Street:
    """A panel owner's house (system 1), a storage node (system 2) and their operator."""

    def __init__(self, folder, rpc, broker_port):
        self.folder, self.rpc, self.port = folder, rpc, broker_port
        self.processes = {}
        self.line = folder / "line"
        world = worlds.on_anvil(rpc)
        world.miner, world.node = (Identities(folder / n / "state", KeySettings()).make() for n in ("house", "node"))
        self.market = Market(None, world=world)
        self.world, self.exchange = world, Exchange(world.deployment)
        world.deployment.addresses.save(folder / "deployment.json")
        for name, account in (("owner", self.market.owner), ("bo", self.market.node_owner)):
            (folder / name).touch(0o600)
            (folder / name).write_text(account.key.hex())
        ask = world.chain.web3.provider.make_request
        assert world.chain.newest_block().time_s < time.time()
        ask("evm_setNextBlockTimestamp", [int(time.time())])  # from here on the chain's time is everybody's
        ask("evm_mine", [])
        self.config = folder / "ingest.toml"

    def begin(self):
        """Let ingest and both agents run."""
        folder, world, rpc, broker_port = self.folder, self.world, self.rpc, self.port
        self.config.write_text(INGEST.format(folder=folder, port=broker_port, rpc=rpc))
        self.start("ingest", MAXGREEN, "ingest", "run", "--config", self.config)
        wait_for((folder / "backend.pem").exists, what="the backend's key")
        backend = load_key_file(folder / "backend.pem").spki.hex()
        for name, first, first_role, line, line_role, more in (
            ("house", 1, "sent", 2, "received", ""),
            ("node", 0, "received", 3, "delivered", RELAY),
        ):
            text = AGENT.format(
                network=world.deployment.network, backend=backend, folder=folder / name, port=broker_port, first=first,
                first_role=first_role, line=line, line_role=line_role, bus=LINE_BUS,
            )  # fmt: skip
            (folder / name / "agent.toml").write_text(text + more)
            self.agent(name)

    def start(self, name, *command):
        log = (self.folder / f"{name}.log").open("a")
        clean = {key: value for key, value in os.environ.items() if key not in {"NOTIFY_SOCKET", "RUNTIME_DIRECTORY"}}
        self.processes[name] = subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=log, stderr=log, env=clean)

    def agent(self, name):
        config = self.folder / name / "agent.toml"
        self.start(name, sys.executable, "-m", "tests.e2e.pi", self.line, "agent", "run", "--config", config)

    def run(self, who, *command):
        """Give a command as a person; return what it printed."""
        environment = {
            **os.environ,
            "MAXGREEN_RPC": self.rpc,
            "MAXGREEN_DEPLOYMENT": str(self.folder / "deployment.json"),
            "MAXGREEN_ACCOUNT": str(self.folder / who),
        }
        done = subprocess.run(
            [MAXGREEN, *map(str, command)],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}\n{self.logs()}"
        return done.stdout

    def logs(self):
        return "\n".join(f"{name}: {(self.folder / f'{name}.log').read_text()[-2_000:]}" for name in self.processes)

    def command(self, device, name, *arguments):
        self.run("bo", "ingest", "command", name, device, *arguments, "--who", "Bo", "--config", self.config)

    def reading(self, token, channel, after_s):
        """Return the file of a meter's reading that is younger than `after_s`: the operator asks the device for it."""
        device = {1: self.world.miner, 2: self.world.node}[token]
        device = key_id(device.spki).hex()
        file = self.folder / f"reading-{token}.json"

        def fresh():
            ledger = f"sqlite:///{self.folder}/ledger.db"
            found = subprocess.run(
                [MAXGREEN, "operator", "reading", str(token), str(channel), "--ledger", ledger],
                capture_output=True, text=True, timeout=120,
            )  # fmt: skip
            if found.returncode == 0 and json.loads(found.stdout)["time"] >= after_s:
                file.write_text(found.stdout)
                return file
            return None

        self.command(device, "registers")
        try:
            return wait_for(fresh, 240, f"a reading of system {token}")
        except AssertionError as error:
            given = self.run("bo", "ingest", "command", "list", "--config", self.config)
            raise AssertionError(f"system {token}: {given}\n{self.logs()}") from error

    def close(self):
        for process in reversed(self.processes.values()):
            stop(process)


@pytest.fixture
def street(tmp_path):
    found = importlib.util.find_spec("RPi")
    need(found and found.submodule_search_locations[0], "rpi-lgpio is not installed (make services)")
    for name in ("house", "node"):
        (tmp_path / name).mkdir()
    started_s = int(time.time()) - MARKET_S
    with running_anvil("--timestamp", str(started_s)) as rpc, mosquitto_server(tmp_path) as port:
        made = Street(tmp_path, rpc, port)
        try:
            made.begin()
            yield made
        finally:
            made.close()


@pytest.mark.services
@pytest.mark.timeout(1_200)
def test_energy_is_taken_out_by_commands_between_two_agents(street):
    owner, energy = street.market.owner, coin(street.world.deployment, "energy", 2)
    before = balances(street.world.deployment, owner.address, [2])["energy 2"]
    asked = json.loads(street.run("owner", "owner", "take-out", "1.2", 2, "0.001", "--json"))
    number, asked_s = asked["request"], int(time.time())
    readings = [street.reading(token, channel, asked_s) for token, channel in ((2, 3), (1, 2))]
    street.run("bo", "node", "accept", number, "--reading", readings[0], "--buyer-reading", readings[1])
    assert street.line.read_text() == "0"
    street.command(
        key_id(street.world.node.spki).hex(), "start-transfer", "--channel", 3, "--seconds", 4, "--kwh", "0.01"
    )
    wait_for(lambda: street.line.read_text() == "1", 60, "the relay to close")
    wait_for(lambda: street.line.read_text() == "0", 120, "the relay to open")
    node_end = street.reading(2, 3, int(time.time()) + 1)
    street.run("bo", "node", "finish", number, "--reading", node_end)
    node_end_s = json.loads(node_end.read_text())["time"]
    street.run("owner", "owner", "confirm", number, "--reading", street.reading(1, 2, node_end_s))
    found = street.exchange.take_out(number)
    assert found.status is RequestStatus.SETTLED
    delivered, received = (json.loads((street.folder / f"reading-{token}.json").read_text()) for token in (2, 1))
    got = int(received["register"])
    measured = min(int(delivered["register"]), got - (-got * ERROR_PPM // 10**6))
    assert measured > 0
    street.run("owner", "owner", "withdraw")
    burned = before - balances(street.world.deployment, owner.address, [2])["energy 2"]
    assert burned == wei_of(measured)
    assert street.exchange.owed(owner.address, energy.address) == 0
    assert "settled" in street.run("owner", "owner", "status")
