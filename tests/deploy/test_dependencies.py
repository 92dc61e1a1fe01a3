"""Each thing that ingest needs refuses, hangs or answers rubbish, at the start and in the middle: it waits, and goes on.

Real Mosquitto, PostgreSQL, InfluxDB and anvil, each behind a proxy that can be any of that.
"""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack

import pytest
from eth_account import Account
from sqlalchemy import select

from maxgreen.chain.client import connect
from maxgreen.chain.deploying import deploy
from maxgreen.chain.deployment import Governance
from maxgreen.chain.embedded import dev_secret
from maxgreen.clock import SystemClock
from maxgreen.ledger.engine import open_engine
from maxgreen.ledger.schema import batches
from maxgreen.protocol.identity import device_topic
from simulator.lab import Lab
from tests.conftest import running_anvil, served
from tests.ingest.site import MAXGREEN, Site
from tests.proxy import Proxy
from tests.services import free_port, influx_server, mosquitto_server, postgres_server, stop, wait_for

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]
NOT_READY = 75
MOODS = ("refuses", "hangs", "rubbish")
PARTS = ("broker", "ledger", "chain", "view")
PATIENCE_S = 90  # the bar is 30; a busy machine takes longer


class Stack:
    """The service behind four proxies, and who sends to it."""

    def __init__(self, folder, stack):
        server = stack.enter_context(served(postgres_server()))
        import psycopg

        with psycopg.connect(server.replace("+psycopg", "") + "/postgres", autocommit=True) as connection:
            connection.execute("CREATE DATABASE ledger")
        influx, self.token, org, bucket = stack.enter_context(served(influx_server(folder)))
        anvil = stack.enter_context(running_anvil())
        broker = stack.enter_context(served(mosquitto_server(folder)))
        ports = {"broker": broker, "ledger": port_of(server), "chain": port_of(anvil), "view": port_of(influx)}
        self.proxies = {name: Proxy(port) for name, port in ports.items()}
        for proxy in self.proxies.values():
            stack.callback(proxy.close)
        self.lab = Lab(1)
        self.url = "postgresql+psycopg://maxgreen@127.0.0.1:%d/ledger"
        self.site = Site(folder, self.url % ports["ledger"], broker, [self.lab])
        accounts = [Account.from_key(dev_secret(k)) for k in range(3)]
        chain = connect(anvil, SystemClock())
        chain.web3.provider.make_request("anvil_setBalance", [accounts[0].address, hex(10**20)])
        deployed = deploy(chain, accounts[0], accounts[1].address, [accounts[2].address], Governance())
        chain.web3.provider.make_request("evm_setIntervalMining", [1])
        deployed.addresses.save(folder / "deployment.json")
        self.site.network = deployed.network
        self.lab = self.site.lab(1)
        self.engine = open_engine(self.url % ports["ledger"])
        (folder / "token").write_text(self.token)
        (folder / "token").chmod(0o600)
        self.http = free_port()
        self.config = folder / "service.toml"
        at = {name: proxy.port for name, proxy in self.proxies.items()}
        self.config.write_text(
            f'ledger = "{self.url % at["ledger"]}"\nkey_file = "{folder}/backend.pem"\n'
            f"[broker]\nport = {at['broker']}\n[http]\nport = {self.http}\n"
            f'[chain]\nrpc = "http://127.0.0.1:{at["chain"]}"\ndeployment = "{folder}/deployment.json"\nrefresh_s = 2\n'
            f'[influx]\nurl = "http://127.0.0.1:{at["view"]}"\ntoken_file = "{folder}/token"\norg = "{org}"\n'
            f'bucket = "{bucket}"\n'
        )
        backend = f'rpc = "http://127.0.0.1:{at["chain"]}"\ndeployment = "{folder}/deployment.json"\n'
        backend = f'ledger = "{self.url % at["ledger"]}"\nkey_file = "{folder}/backend.pem"\nevidence = "{folder}/e"\n{backend}'
        self.pages = free_port()
        (folder / "dapp.toml").write_text(
            f'{backend}state_file = "{folder}/dapp.db"\n[http]\nport = {self.pages}\n'
            f'url = "http://127.0.0.1:{self.pages}"\n[live]\nenabled = true\nport = {at["broker"]}\n'
        )
        (folder / "operator.key").write_text("11" * 32)
        (folder / "operator.key").chmod(0o600)
        (folder / "settlement.toml").write_text(
            f'{backend}operator_file = "{folder}/operator.key"\noutput_dir = "{folder}/settlement"\n'
        )
        self.influx = f"{influx}/query?db={bucket}&epoch=ns&q="
        self.sent = 0
        self.site.subscribed("ingest")
        self.client = self.site.client("publisher")
        stack.callback(self.client.loop_stop)

    def start(self):
        return self.site.service_from(self.config, "service")

    def start_pages(self):
        return self.command("dapp", "run", "-c", self.site.folder / "dapp.toml")

    def start_settlement(self):
        """A period without lines: it reads ledger and chain, and has nothing to pay."""
        config = self.site.folder / "settlement.toml"
        return self.command("settle", "run", "--period", "2026-01-01", "-c", config)

    def command(self, *words):
        log = (self.site.folder / f"{words[0]}.log").open("a")
        return subprocess.Popen([MAXGREEN, *words], stdout=log, stderr=log)

    def send(self):
        """Send a batch; the broker keeps it for the service."""
        message = self.lab.sign(self.lab.batch([(1, 1)]), network=self.site.network)
        self.client.publish(device_topic(self.lab.device, "batch"), message, qos=1).wait_for_publish(30)
        self.sent += 1

    def kept(self):
        with self.engine.begin() as connection:
            return len(connection.execute(select(batches.c.seq)).all())

    def viewed(self):
        query = "SELECT%20count(seq)%20FROM%20batch"
        request = urllib.request.Request(self.influx + query, headers={"Authorization": f"Token {self.token}"})
        series = json.loads(urllib.request.urlopen(request, timeout=10).read())["results"][0].get("series")
        return series[0]["values"][0][1] if series else 0

    def asked(self, path, port=None):
        """Return status and text of health or metrics; 0 where nothing answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port or self.http}{path}", timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def whole(self):
        """Tell whether all that was sent is in ledger and view, and the service says that it is ready."""
        ready = [self.asked("/health/ready", port)[0] for port in (self.http, self.pages)]
        return self.kept() == self.sent and self.viewed() == self.sent and ready == [200, 200]

    def log(self):
        return self.site.log("service")


def port_of(url):
    return int(url.rpartition(":")[2].partition("/")[0])


@pytest.mark.parametrize("mood", MOODS)
def test_ingest_waits_for_whatever_it_needs_and_goes_on_by_itself(tmp_path, mood):
    with ExitStack() as stack:
        world = Stack(tmp_path, stack)
        for proxy in world.proxies.values():
            proxy.be(mood)
        world.send()
        process, pages, settlement = world.start(), world.start_pages(), world.start_settlement()
        try:
            wait_for(lambda: "waiting" in world.log(), 60, "the word that it waits")
            time.sleep(3)
            assert [one.poll() for one in (process, pages, settlement)] == [None] * 3
            assert world.asked("/health/ready")[0] != 200
            for part in ("ledger", "broker", "chain", "view"):  # one by one: what comes next is waited for as well
                world.proxies[part].be("passes")
            wait_for(world.whole, PATIENCE_S, "the service's readiness after the start")
            assert settlement.wait(PATIENCE_S) in {0, NOT_READY}, world.site.log("settle")
            for part in PARTS:
                in_the_middle(world, part, mood)
                assert [one.poll() for one in (process, pages)] == [None] * 2
            lines = world.log().splitlines()
            assert len(lines) < 80, world.log()  # said once, not with every attempt
        except BaseException:
            print(world.log(), *map(world.site.log, ("dapp", "settle")), sep="\n", file=sys.stderr)
            raise
        finally:
            for one in (process, pages, settlement):
                stop(one)
        assert process.returncode == pages.returncode == 0
        for name in ("service", "dapp", "settle"):
            assert "Traceback" not in world.site.log(name)


def in_the_middle(world, part, mood):
    world.proxies[part].be(mood)
    world.send()
    settlement = world.start_settlement() if part in {"ledger", "chain"} else None
    kept = lambda: world.kept() == world.sent  # noqa: E731
    if part in {"chain", "view"}:
        wait_for(kept, PATIENCE_S, f"intake without the {part}")
    wait_for(lambda: world.asked("/health/ready")[0] == 503, PATIENCE_S, f"the word that the {part} {mood}")
    assert world.asked("/health/live")[0] == 200
    world.proxies[part].be("passes")
    since = time.monotonic()
    wait_for(world.whole, PATIENCE_S, f"all of it, after the {part} {mood}")
    assert settlement is None or settlement.wait(PATIENCE_S) in {0, NOT_READY}, world.site.log("settle")
    print(f"{part} {mood}: whole {time.monotonic() - since:.1f} s after it was back", file=sys.stderr)
