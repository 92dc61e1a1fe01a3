"""How fast ingest drains a backlog, how soon a receipt comes, and how the cost grows.

    python benchmarks/ingest.py [ledger|latency|growth|memory|view|all] [--batches N] [--devices N] [--rounds N]
                                [--processes N] [--database sqlite|postgresql|both] [--telegraf PATH] [--json]

Every server is started here, on the loopback interface, and stopped at the end: Mosquitto, PostgreSQL, InfluxDB 2.9.1.
They share this machine's processors with the service, `maxgreen ingest run`, which is the real one.

ledger: batches of 60 samples and one share, queued in Mosquitto for the service's session, into the ledger; the clock
runs from the service's connection to the last commit.
latency: batches that come at a steady rate; from the publish to the receipt at a subscriber.
growth: processor time a batch, in one process and without a broker, by the number of devices and of batches held; in
groups of a hundred, each device once, as they come from a fleet.
memory: of the service, after a batch of each of `--fleet` devices, which name as many beacons, in a ledger that has
those of a year; the largest of its processes.
view: as ledger, until every sample is in InfluxDB; with --telegraf in turn with Telegraf, which reads the same
samples as line protocol and verifies nothing.
"""

# this file's own folder would hide the package `ingest`
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from rich.progress import Progress
from sqlalchemy import Engine, insert, select, text

from ingest.config import InfluxSettings
from ingest.metrics import Metrics
from ingest.view.compare import Ask, asker
from ingest.worker import Worker
from maxgreen.chain.client import connect
from maxgreen.chain.deploying import deploy
from maxgreen.chain.deployment import Governance
from maxgreen.chain.embedded import dev_secret
from maxgreen.clock import FileClock
from maxgreen.keyfile import create_key_file, load_key_file
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import open_engine
from maxgreen.ledger.registry import KnownDevice, put_devices
from maxgreen.ledger.schema import REVISION, counters
from maxgreen.ledger.schema import beacons as beacons_table
from maxgreen.ledger.schema import chains as chains_table
from maxgreen.mqtt import Incoming
from maxgreen.protocol.backend import decode_receipt, sign_beacon
from maxgreen.protocol.batch import Role, parse_batch
from maxgreen.protocol.cose import network_digest, parse
from maxgreen.protocol.identity import ROOT, device_topic
from maxgreen.protocol.keys import MemorySigner, key_id
from maxgreen.service import collect_seldom
from maxgreen.verify.chain import ChainState
from maxgreen.verify.rules import DeviceRecord, Limits
from native.lines import sample_lines
from simulator.lab import EASY, T0_MS, Lab, beacon
from tests.services import influx_server, mosquitto_server, postgres_server, stop, wait_for

WHAT = ("ledger", "latency", "growth", "memory", "view", "all")
FIRST_SECRET = 1_000
SAMPLES = 60
_TOGETHER = 100
YEAR_OF_BEACONS = 525_600
SYSTEM = {"kind": "miner", "channels": [], "place_deci": None, "since_ms": 0}


def main() -> None:
    """Measure, and print a table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=WHAT, default="all")
    parser.add_argument("--batches", type=int, default=15_000)
    parser.add_argument("--devices", type=int, default=200)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="that judge")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=int, default=500, help="batches a second, for latency")
    parser.add_argument("--seconds", type=int, default=20, help="of the latency run")
    parser.add_argument("--held", type=int, nargs="*", default=[0, 100_000], help="batches held before, for growth")
    parser.add_argument("--fleets", type=int, nargs="*", default=[100, 1_000, 10_000], help="devices, for growth")
    parser.add_argument("--fleet", type=int, default=100_000, help="devices, for memory")
    parser.add_argument("--database", choices=("sqlite", "postgresql", "both"), default="both")
    parser.add_argument("--telegraf", type=Path, help="its program: the peer of `view`")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    databases = ["sqlite", "postgresql"] if options.database == "both" else [options.database]
    result: dict[str, Any] = {}
    with ExitStack() as stack, Progress(transient=True, disable=options.json) as progress:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bench = Bench(folder, options, progress, stack)
        if options.what in {"ledger", "all"}:
            for database in databases:
                result |= bench.ledger(database)
        if options.what in {"latency", "all"}:
            for database in databases:
                result |= bench.latency(database)
        if options.what in {"growth", "all"}:
            for database in databases:
                result |= bench.growth(database)
        if options.what == "memory":  # it takes minutes to sign for so many
            for database in databases:
                result |= bench.memory(database)
        if options.what in {"view", "all"}:
            result |= bench.view(databases)
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:<44} {value}")


class Bench:
    """A site (chain, key, clock), the batches of its devices, and the servers."""

    def __init__(self, folder: Path, options: argparse.Namespace, progress: Progress, stack: ExitStack) -> None:
        from eth_account import Account

        self.folder, self.options, self.progress, self.stack = folder, options, progress, stack
        clock = FileClock(folder / "clock")
        clock.sleep_until(T0_MS - 86_400_000)
        accounts = [Account.from_key(dev_secret(k)) for k in range(3)]
        chain = connect(str(folder / "deployed.db"), clock)
        deployment = deploy(chain, accounts[0], accounts[1].address, [accounts[2].address], Governance())
        deployment.addresses.save(folder / "deployment.json")
        shutil.copy(folder / "deployed.db", folder / "chain.db")  # the service's own: a chain's file has one owner
        self.network = deployment.network
        create_key_file(folder / "backend.pem")
        self.signer = load_key_file(folder / "backend.pem")
        clock.sleep_until(T0_MS + 30 * 86_400_000)
        self.mosquitto = stack.enter_context(mosquitto_server(folder))
        self._postgres: str | None = None
        self._databases = 0
        self._messages: dict[tuple[int, int], list[tuple[bytes, bytes]]] = {}

    # what is measured

    def ledger(self, database: str) -> dict[str, Any]:
        """Drain a backlog into the ledger."""
        messages = self.messages(self.options.batches, self.options.devices)
        rates, costs = [], []
        for _ in range(self.options.rounds):
            engine = self.fresh(database)
            self.queue("ingest", [(device_topic(device, "batch"), message) for device, message in messages])
            with self.service(engine) as process:
                begun, used = self.connected(process), cpu_s(process.pid)
                wait_for(lambda: revision(engine) >= len(messages), 300, "the drain")  # noqa: B023
                took = time.monotonic() - begun
                costs.append((cpu_s(process.pid) - used) / len(messages) * 1e6)
            rates.append(len(messages) / took)
            with engine.begin() as connection:
                counts = Book(connection).verdict_counts()
            if counts != {("accepted", 0): len(messages)}:
                raise RuntimeError(f"not every batch was accepted: {counts}")
            engine.dispose()
        name = "ledger_batches_per_s" + ("" if database == "sqlite" else "_postgres")
        return {name: round(statistics.median(rates)), f"{name}_cpu_us": round(statistics.median(costs))}

    def latency(self, database: str) -> dict[str, Any]:
        """Publish at a steady rate and wait for the receipts."""
        count = self.options.rate * self.options.seconds
        messages = self.messages(count, self.options.devices)
        engine = self.fresh(database)
        sent: dict[tuple[str, int], float] = {}
        waits: list[float] = []
        done = threading.Event()
        following: dict[str, int] = {}

        def receipt(_client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
            if message.retain:  # of an earlier run
                return
            now = time.monotonic()
            name = message.topic.split("/")[3]
            next_seq = decode_receipt(parse(message.payload).payload).next_seq
            covered = [(name, seq) for seq in range(following.get(name, 0), next_seq) if (name, seq) in sent]
            waits.extend(now - sent.pop(place) for place in covered)
            following[name] = next_seq
            if len(waits) >= count:
                done.set()

        with self.service(engine) as process:
            self.connected(process)
            listener = self.client("listener")
            listener.on_message = receipt
            listener.subscribe(f"{ROOT}/+/+/receipt", 0)
            listener.loop_start()
            publisher = self.client("publisher")
            publisher.loop_start()
            time.sleep(0.5)
            used, begun = cpu_s(process.pid), time.monotonic()
            seqs: dict[bytes, int] = {}
            for k, (device, message) in enumerate(messages):
                pause = begun + k / self.options.rate - time.monotonic()
                if pause > 0:
                    time.sleep(pause)
                seq = seqs[device] = seqs.get(device, -1) + 1
                sent[device.hex(), seq] = time.monotonic()
                publisher.publish(device_topic(device, "batch"), message, qos=1)
            done.wait(30)
            took = time.monotonic() - begun
            used = cpu_s(process.pid) - used
            for client in (listener, publisher):
                client.disconnect()
                client.loop_stop()
        engine.dispose()
        if len(waits) < count:
            raise RuntimeError(f"{count - len(waits)} of {count} batches got no receipt")
        waits.sort()
        suffix = "" if database == "sqlite" else "_postgres"
        return {
            f"receipt_p50_ms{suffix}": round(waits[len(waits) // 2] * 1000, 1),
            f"receipt_p99_ms{suffix}": round(waits[len(waits) * 99 // 100] * 1000, 1),
            f"core_at_{self.options.rate}_per_s{suffix}": round(used / took, 3),
        }

    def growth(self, database: str) -> dict[str, Any]:
        """Judge in this process, without a broker: processor time a batch of our own, µs, the median of the rounds."""
        result = {}
        for devices in self.options.fleets:
            for held in self.options.held:
                result[f"cpu_us_{database}_{devices}_devices_{held}_held"] = statistics.median(
                    self.cost(database, devices, held) for _ in range(self.options.rounds)
                )
        return result

    def cost(self, database: str, devices: int, held: int, count: int = 5_000) -> int:
        """Return the processor time of a batch, µs, over a ledger that holds batches of these devices already."""
        before = held // devices
        senders = min(devices, count)
        rounds = count // senders + 1  # before the first one is over, chains begin and keys are read
        self.options.devices = devices
        engine = self.fresh(database)
        fill(engine, before)
        chains = {
            key_id(MemorySigner.from_secret(FIRST_SECRET + k).spki): signed(
                FIRST_SECRET + k, rounds, self.network, before, head_of(k) if before else None
            )
            for k in range(senders)
        }
        with engine.begin() as connection:
            if before:
                for k, device in enumerate(chains):
                    state = ChainState(head_of(k), before, wall_ms=T0_MS - 1)
                    connection.execute(insert(chains_table).values(device=device, **started(state)))
        wire = Wire(
            [
                Incoming(device_topic(device, "batch"), chain[n])
                for n in range(rounds)
                for device, chain in chains.items()
            ]
        )
        worker = Worker(engine, wire, self.network, self.signer, FileClock(self.folder / "clock"), Metrics())
        judged = 0
        collect_seldom()  # as the service's processes do
        while judged < senders:
            judged += worker.step()
        judged, used = 0, time.process_time()
        while step := worker.step():
            judged += step
        cost = (time.process_time() - used) / judged * 1e6
        with engine.begin() as connection:
            if Book(connection).verdict_counts() != {("accepted", 0): rounds * senders}:
                raise RuntimeError("not every batch was accepted")
        engine.dispose()
        return round(cost)

    def memory(self, database: str) -> dict[str, Any]:
        """Let a fleet send a batch each, and look at the service's resident memory."""
        self.options.devices = fleet = self.options.fleet
        messages = self.messages(fleet, fleet)
        engine = self.fresh(database)
        self.put_a_year_of_beacons(engine)
        self.queue("ingest", [(device_topic(device, "batch"), message) for device, message in messages])
        with self.service(engine) as process:
            self.connected(process)
            wait_for(lambda: revision(engine) >= fleet, 600, "the fleet's batches")
            largest = max(resident_mib(pid) for pid in family(process.pid))
        engine.dispose()
        return {f"mib_{fleet}_devices_{database}": largest}

    def view(self, databases: Sequence[str]) -> dict[str, Any]:
        """Drain until the samples are in InfluxDB, in turn with Telegraf where its program is given.

        A ratio is the median of those within a turn: this machine's speed may change between turns.
        """
        messages = self.messages(self.options.batches, self.options.devices)
        rates: dict[str, list[float]] = defaultdict(list)
        for number in range(self.options.rounds):
            if self.options.telegraf is not None:
                rates["telegraf"].append(self.telegraf(messages, number))
            for database in databases:
                rates[database].append(self.drain(database, messages))
        result: dict[str, Any] = {}
        for database in databases:
            suffix = "" if database == "sqlite" else "_postgres"
            result[f"end_to_end_samples_per_s{suffix}"] = round(statistics.median(rates[database]))
            if theirs := rates["telegraf"]:
                ratios = [ours / peer for ours, peer in zip(rates[database], theirs, strict=True)]
                result["telegraf_samples_per_s"] = round(statistics.median(theirs))
                result[f"ratio_telegraf{suffix}"] = round(statistics.median(ratios), 2)
        return result

    def drain(self, database: str, messages: list[tuple[bytes, bytes]]) -> float:
        """Return the samples a second of ours."""
        with influx_server(self.subfolder("influx")) as (url, token, org, bucket):
            (self.folder / "token").write_text(token)
            engine = self.fresh(database)
            self.queue("ingest", [(device_topic(device, "batch"), message) for device, message in messages])
            more = f'[influx]\nurl = "{url}"\ntoken_file = "{self.folder}/token"\norg = "{org}"\nbucket = "{bucket}"\n'
            with self.service(engine, more) as process:
                begun = self.connected(process)
                ask = asker(InfluxSettings(url=url, token_file=self.folder / "token", org=org, bucket=bucket))
                arrived(ask, messages)
                rate = SAMPLES * len(messages) / (time.monotonic() - begun)
            engine.dispose()
        return rate

    def telegraf(self, messages: list[tuple[bytes, bytes]], number: int) -> float:
        """Return the samples a second of Telegraf on the same samples as line protocol."""
        with influx_server(self.subfolder("influx")) as (url, token, org, bucket):
            config = self.folder / "telegraf.conf"
            settings = {
                "agent": {
                    "interval": "10s", "flush_interval": "1s", "metric_batch_size": 5_000,
                    "metric_buffer_limit": 2_000_000, "omit_hostname": True,
                },
                "[inputs.mqtt_consumer]": {
                    "servers": [f"tcp://127.0.0.1:{self.mosquitto}"], "topics": ["lines/#"], "qos": 1,
                    "max_undelivered_messages": 1_000, "persistent_session": True,
                    "client_id": f"telegraf{number}", "data_format": "influx",
                },
                "[outputs.influxdb_v2]": {
                    "urls": [url], "token": token, "organization": org, "bucket": bucket,
                    "content_encoding": "identity",
                },
            }  # fmt: skip
            config.write_text(
                "".join(
                    f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
                    for name, table in settings.items()
                )
            )
            lines = []
            for device, message in messages:
                batch = parse_batch(message).batch
                [channel] = batch.channels
                tags = f"device={device.hex()},channel={channel.number},role={channel.role}"
                text = sample_lines(tags, channel.voltage, channel.current, channel.offsets, batch.t0_ms)
                lines.append((f"lines/{device.hex()}", text))
            self.queue(f"telegraf{number}", lines, "lines/#")
            log = (self.folder / "telegraf.log").open("ab")
            process = subprocess.Popen([self.options.telegraf, "--config", config], stdout=log, stderr=log)
            try:
                begun = self.connected(process)
                (self.folder / "token").write_text(token)
                ask = asker(InfluxSettings(url=url, token_file=self.folder / "token", org=org, bucket=bucket))
                arrived(ask, messages)
                return SAMPLES * len(messages) / (time.monotonic() - begun)
            finally:
                stop(process)

    def subfolder(self, name: str) -> Path:
        """Return a new folder."""
        return Path(tempfile.mkdtemp(prefix=name, dir=self.folder))

    # what it stands on

    def messages(self, count: int, devices: int) -> list[tuple[bytes, bytes]]:
        """Return signed batches of the devices in turn: device id and message."""
        if (count, devices) not in self._messages:
            task = self.progress.add_task("signing batches", total=devices)
            each = -(-count // devices)
            chains = []
            with ProcessPoolExecutor() as pool:
                number = beacon().number
                jobs = [
                    # where each device has one batch only, each has a beacon of its own
                    pool.submit(signed, FIRST_SECRET + k, each, self.network, work=number + (k if each == 1 else 0))
                    for k in range(devices)
                ]
                for job in jobs:
                    chains.append(job.result())
                    self.progress.advance(task)
            self.progress.remove_task(task)
            ids = [key_id(MemorySigner.from_secret(FIRST_SECRET + k).spki) for k in range(devices)]
            turns = [(ids[k], chains[k][n]) for n in range(each) for k in range(devices)]
            self._messages[count, devices] = turns[:count]
        return self._messages[count, devices]

    def fresh(self, database: str) -> Engine:
        """Return a new ledger that knows the devices."""
        self._databases += 1
        if database == "sqlite":
            url = f"sqlite:///{self.folder / f'ledger{self._databases}.db'}"
        else:
            import psycopg

            if self._postgres is None:
                self._postgres = self.stack.enter_context(postgres_server(durable=True))
            with psycopg.connect(self._postgres.replace("+psycopg", "") + "/postgres", autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE l{self._databases}")
            url = f"{self._postgres}/l{self._databases}"
        engine = open_engine(url)
        challenge = replace(beacon(), block_number=0)
        with engine.begin() as connection:
            records = [
                DeviceRecord(MemorySigner.from_secret(FIRST_SECRET + k).spki, ((0, "active"),))
                for k in range(self.options.devices)
            ]
            put_devices(connection, [KnownDevice(r, k, "0x" + "0" * 40, SYSTEM) for k, r in enumerate(records, 1)])
            book = Book(connection)
            book.set_limits(0, Limits(pow_nbits_min=EASY, late_s=10**8))
            book.add_beacon(challenge, sign_beacon(challenge, self.signer, self.network))
        return engine

    def put_a_year_of_beacons(self, engine: Engine) -> None:
        """Let the ledger have as many beacons as a year brings, one a minute."""
        rows = []
        for number in range(beacon().number + 1, beacon().number + YEAR_OF_BEACONS):
            one = replace(beacon(number), block_number=0)
            message = sign_beacon(one, self.signer, self.network)
            rows.append({"number": number, "issued_s": one.issued_s, "message": message})
        with engine.begin() as connection:
            for start in range(0, len(rows), 10_000):
                connection.execute(insert(beacons_table), rows[start : start + 10_000])

    def client(self, name: str) -> mqtt.Client:
        """Return a connected client."""
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name, clean_session=False)
        client.max_inflight_messages_set(1_000)
        client.max_queued_messages_set(0)
        client.connect("127.0.0.1", self.mosquitto)
        return client

    def queue(self, session: str, messages: list[tuple[str, bytes]], topic: str = f"{ROOT}/+/+/batch") -> None:
        """Let the broker queue messages for a session that is away."""
        ready = threading.Event()
        owner = self.client(session)
        owner.on_subscribe = lambda *_: ready.set()
        owner.loop_start()
        owner.subscribe(topic, 1)
        ready.wait(10)
        owner.disconnect()
        owner.loop_stop()
        publisher = self.client("publisher")
        publisher.loop_start()
        for k, (name, payload) in enumerate(messages, 1):
            last = publisher.publish(name, payload, qos=1)
            if k % 10_000 == 0 or k == len(messages):  # paho queues 65,535 at most
                last.wait_for_publish(120)
        publisher.disconnect()
        publisher.loop_stop()

    @contextmanager
    def service(self, engine: Engine, more: str = "") -> Iterator[subprocess.Popen[bytes]]:
        """Run the service on a ledger."""
        config = self.folder / "ingest.toml"
        config.write_text(
            f'ledger = "{engine.url.render_as_string(hide_password=False)}"\nkey_file = "{self.folder}/backend.pem"\n'
            f'clock_file = "{self.folder}/clock"\nprocesses = {self.options.processes}\n'
            f'[broker]\nport = {self.mosquitto}\n[chain]\nrpc = "{self.folder}/chain.db"\n'
            f'deployment = "{self.folder}/deployment.json"\nrefresh_s = 3600\n[http]\nport = 0\n{more}'
        )
        program = Path(sys.executable).parent / "maxgreen"
        log = (self.folder / "ingest.log").open("ab")
        process = subprocess.Popen([program, "ingest", "run", "-c", config], stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)

    def connected(self, process: subprocess.Popen[bytes]) -> float:
        """Return when a process connected to the broker."""
        wanted = f"0100007F:{self.mosquitto:04X}"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise RuntimeError((self.folder / "ingest.log").read_text()[-2_000:])
            lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
            if any(line.split()[2] == wanted and line.split()[3] == "01" for line in lines):
                return time.monotonic()
            time.sleep(0.002)
        raise RuntimeError("the service did not connect within a minute")


READINGS = tuple((18_000_000 + 1_000 * (k % 7), 1_000_000 + 500 * k) for k in range(SAMPLES))


def signed(
    secret: int, count: int, network: str, seq: int = 0, head: bytes | None = None, work: int | None = None
) -> list[bytes]:
    """Return batches of a device from a seq on: 60 one-second samples of one channel, one share each.

    `work`: the number of the beacon that it is done on.
    """
    lab = Lab(secret, roles=(Role.GENERATION,), seq=seq, head=head or network_digest(network))
    challenge = beacon() if work is None else beacon(work)
    return [lab.sign(lab.batch(READINGS, work=lab.work(challenge, shares=1)), network=network) for _ in range(count)]


class Wire:
    """A broker in memory that has messages, and gives a hundred at once."""

    def __init__(self, messages: list[Incoming]) -> None:
        self._messages = messages

    def receive(self, most: int, _wait_s: float, _linger_s: float) -> list[Incoming]:
        """Return the next group."""
        most = min(most, _TOGETHER)
        group, self._messages = self._messages[:most], self._messages[most:]
        return group

    def acknowledge(self, _messages: object) -> None:
        """Forget them."""

    def publish(self, _topic: str, _payload: bytes, *, retain: bool) -> bool:
        """Take a receipt."""
        return retain


def head_of(number: int) -> bytes:
    """Return the head of a chain whose batches are made up."""
    return number.to_bytes(32, "big")


def started(state: ChainState) -> dict[str, Any]:
    """Return the row of a chain that stands there."""
    return {
        "version": 1, "next_seq": state.next_seq, "state": state.to_bytes(), "waiting": 0, "waiting_bytes": 0,
        "due": 0, "credited": b"\xa0",
    }  # fmt: skip


def fill(engine: Engine, each: int) -> None:
    """Let the ledger hold made-up batches of every device."""
    t0 = f"{T0_MS} - 60000 * ({each} - s.n)"
    if not each:
        return
    if engine.dialect.name == "sqlite":
        series = (
            f"(WITH RECURSIVE s(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM s WHERE n < {each - 1}) SELECT n FROM s)"
        )
        zeros, random_bytes = "zeroblob(700)", "randomblob(32)"
        yes, no = "1", "0"
    else:
        series = f"(SELECT generate_series(0, {each - 1}) AS n)"
        zeros, random_bytes = "decode(repeat('00', 700), 'hex')", "sha256(d.device)"
        yes, no = "true", "false"
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO batches (device, seq, digest, message, received_ms, in_chain, verdict, reason, remark, "
                f"t0_ms, shares, hashes, skipped_to, revision) SELECT d.device, s.n, {random_bytes}, {zeros}, {T0_MS}, "
                f"{yes}, 'accepted', 0, 0, {t0}, 1, '2', {no}, 0 FROM {series} AS s, devices d"
            )
        )
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql("VACUUM ANALYZE")


def arrived(ask: Ask, messages: list[tuple[bytes, bytes]]) -> None:
    """Wait until the view has every sample: first the last device's, since to count all of them costs the server."""
    last, _ = messages[-1]
    of_last = SAMPLES * sum(device == last for device, _ in messages)
    wait_for(lambda: samples(ask, f"WHERE device = '{last.hex()}'") >= of_last, 600, "the last device's samples")
    while samples(ask) < SAMPLES * len(messages):
        time.sleep(0.1)


def samples(ask: Ask, which: str = "") -> int:
    """Return how many samples the view has."""
    series = ask(f'SELECT count("v") FROM "sample" {which}')
    return int(series[0]["values"][0][1]) if series else 0


def revision(engine: Engine) -> int:
    """Return how many verdicts the ledger has."""
    with engine.connect() as connection:
        return int(connection.execute(select(counters.c.value).where(counters.c.name == REVISION)).scalar() or 0)


def cpu_s(pid: int) -> float:
    """Return the processor time that a process and those that it began have used, s."""
    ticks = 0
    for one in family(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> int:
    """Return a process's resident memory, MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20


def family(pid: int) -> list[int]:
    """Return a process and those that it began."""
    begun = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in begun for one in family(int(child)))]


if __name__ == "__main__":
    main()
