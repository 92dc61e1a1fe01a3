"""What the agent costs, how steadily it samples, and how it comes through an outage.

    python benchmarks/agent.py [outage|live|medium|link|all] [--batches N] [--seconds N] [--json]

outage: batches of many days wait in the spool, then go to the embedded backend (43,200 are 30 days at 60 s).
The backend (amqtt, ingest, SQLite ledger) runs in a process of its own, the agent's spool and uplink in this one; both
are the real ones, on the loopback interface. The device is registered in the ledger.
live: two INA219 register emulators under the real driver; at 1 Hz without mining for the cost, then at 10 Hz with a
miner on every core at full duty for the jitter: how long after its slot a reading was taken. The broker is away.
medium: a day at 1 Hz, two channels, a batch and its receipt a minute, in seconds: bytes that the kernel wrote to the
medium (/proc/self/io) from start to close, synchronised as on a Pi. TMPDIR must be on a disk, not in memory.
link: Mosquitto over TLS with the project's own settings, 20 messages a second in and out, a connection that is cut at
random: disconnects that nobody made, batches that went twice without need. Not part of `all`.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from edge_agent.agent import Agent
from edge_agent.config import BrokerSettings, ProtocolName
from edge_agent.mqtt_link import MqttLink
from edge_agent.parts import AgentParts
from edge_agent.sealer import Sealer
from edge_agent.sensors.base import Sensor
from edge_agent.sensors.ina219 import Ina219Sensor
from edge_agent.source import LiveSource, Tick
from edge_agent.spool import Spool
from edge_agent.uplink import Uplink
from maxgreen.clock import SystemClock
from maxgreen.protocol.backend import BackendKeys, Receipt, sign_receipt
from maxgreen.protocol.batch import Birth
from maxgreen.protocol.batch import Sensor as BirthSensor
from maxgreen.protocol.cose import network_digest
from maxgreen.protocol.keys import MemorySigner, key_id
from maxgreen.protocol.reasons import Verdict
from maxgreen.verify.meter import Sample
from native.scrypt import Miner

sys.path.insert(0, str(Path(__file__).parents[1]))  # the register emulator belongs to the tests
from tests.fakes.ina219_bus import Ina219Bus

BACKEND, DEVICE = MemorySigner.from_secret(2), MemorySigner.from_secret(3)
SEAL_S = 60


def main() -> None:
    """Fill a spool, deliver it, and say how long both took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("outage", "live", "medium", "link", "all"), default="all")
    parser.add_argument("--seconds", type=int, default=60, help="of each live run")
    parser.add_argument("--batches", type=int, default=43_200, help="how many wait (30 days at 60 s)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    result: dict[str, Any] = {}
    if options.what in {"live", "all"}:
        result |= {f"at_1_hz_{name}": value for name, value in live(min(options.seconds, 120), 1_000, 0).items()}
        miners = os.cpu_count() or 1
        result |= {f"at_10_hz_mining_{name}": value for name, value in live(options.seconds, 100, miners).items()}
    if options.what in {"medium", "all"}:
        with tempfile.TemporaryDirectory() as folder:
            result |= medium(Path(folder))
    if options.what == "link":
        from tests.edge_agent.soak import soak

        program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        with tempfile.TemporaryDirectory() as folder:
            result |= soak(program, Path(folder), options.seconds, 20, options.seconds // 8)
    if options.what in {"outage", "all"}:
        with tempfile.TemporaryDirectory() as folder:
            result |= outage(Path(folder), options.batches)
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:<34} {value}")


def live(seconds: int, interval_ms: int, miners: int) -> dict[str, Any]:
    """Return what an agent in a process of its own took while it measured."""
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    begun = time.time()
    process = context.Process(target=measure_live, args=(seconds, interval_ms, miners, theirs))
    process.start()
    result: dict[str, Any] = ours.recv()
    process.join()
    result["ready_s"] = round(result["ready_s"] - begun, 2)
    return result


def measure_live(seconds: int, interval_ms: int, miners: int, pipe: Connection) -> None:
    """Run an agent for a while and send what it took."""
    network = "eip155:1:0x" + "00" * 20
    sensors: dict[int, Sensor] = {n: Ina219Sensor(Ina219Bus, address=0x40, shunt_uohm=100_000) for n in (0, 1)}
    late: list[int] = []
    spans: list[int] = []

    class Watched(LiveSource):
        def ticks(self, after_boot_ms: int) -> Iterator[Tick]:
            for tick in super().ticks(after_boot_ms):
                late.extend(sample.boot_ms - tick.boot_ms for sample in tick.samples.values())
                spans.append(tick.boot_ms)
                yield tick

    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder) / "spool.db", network_digest(network))
        uplink = Uplink(
            MqttLink(BrokerSettings(port=1), key_id(DEVICE.spki), b"{}"),
            spool,
            key_id(DEVICE.spki),
            BackendKeys((BACKEND.spki,), network),
            network,
            SystemClock(),
            window=20,
            resend_s=30,
        )
        agent = Agent(
            AgentParts(
                Watched(sensors, interval_ms=interval_ms),
                DEVICE,
                spool,
                uplink,
                None,
                _birth(),
                network,
                interval_ms,
                SEAL_S * 1000,
            )
        )
        ready: list[float] = []
        mining = [Miner(os.urandom(76), 0) for _ in range(miners)]
        for miner in mining:
            threading.Thread(target=_mine, args=(miner,), daemon=True).start()
        threading.Timer(seconds, agent.stop).start()
        begun_s = time.process_time()
        agent.run(progress=lambda: ready.append(time.time()) if not ready else None)
        used_s = time.process_time() - begun_s
        for miner in mining:
            miner.stop()
    slots = (spans[-1] - spans[0]) // interval_ms + 1
    late.sort()
    result = {
        "ready_s": ready[0],
        "rss_mib": round(rss_kib() / 1024, 1),
        "slots_missed": slots - len(spans),
        "samples": len(late),
        "late_ms_p50_p99_max": [late[len(late) // 2], late[len(late) * 99 // 100], late[-1]],
    }
    if not miners:
        result["core_share"] = round(used_s / seconds, 4)
    pipe.send(result)


def _mine(miner: Miner) -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
    miner.find()


def _birth() -> Birth:
    sensors = tuple(BirthSensor(n, n, "fake", 100_000, 5_000, 26_000_000, 3_200_000, "none") for n in (0, 1))
    return Birth(DEVICE.spki, sensors, "benchmark", bytes(32), "none", 0, "none", 0)


def _sealer(spool: Spool, network: str) -> Sealer:
    return Sealer(
        spool,
        DEVICE,
        network,
        _birth(),
        bytes(16),
        interval_ms=1_000,
        seal_ms=SEAL_S * 1000,
        harvest=lambda _prev: None,
    )


def medium(folder: Path) -> dict[str, Any]:
    """Return what a day writes to the medium."""
    network, begin_ms = "eip155:1:0x" + "00" * 20, time.time_ns() // 10**6 // 86_400_000 * 86_400_000
    before, samples_s = written_bytes(), 86_400
    spool = Spool(folder / "spool.db", network_digest(network))
    sealer = _sealer(spool, network)
    for second in range(samples_s):
        boot_ms = second * 1000 + 60_000
        samples = {n: Sample(18_000_000 + 4_000 * (second % 60), 1_000_000 + second % 999, boot_ms) for n in (0, 1)}
        sealer.take(Tick(begin_ms + second * 1000, boot_ms, samples))
        if second % SEAL_S == 1:  # the receipt comes a moment after the batch
            receipt = Receipt(key_id(DEVICE.spki), spool.tip.next_seq, spool.tip.head, begin_ms + second * 1000, 7)
            spool.receipted(receipt, sign_receipt(receipt, BACKEND, network))
    sealer.stop()
    spool.close()
    return {"medium_mb_per_day": round((written_bytes() - before) / 1e6, 1), "medium_batches": spool.tip.next_seq}


def written_bytes() -> int:
    """Return how many bytes this process had the kernel write to media."""
    return int(Path("/proc/self/io").read_text().split("\nwrite_bytes: ")[1].split()[0])


def outage(folder: Path, count: int) -> dict[str, Any]:
    """Return what was measured."""
    ours, theirs = multiprocessing.Pipe()
    backend = multiprocessing.get_context("spawn").Process(target=serve, args=(folder, theirs))
    backend.start()
    network, port = ours.recv()
    spool = Spool(folder / "spool.db", network_digest(network))
    before_kib, begun = rss_kib(), time.perf_counter()
    fill(spool, network, count)
    filled_s, filled_kib = time.perf_counter() - begun, rss_kib()
    device = key_id(DEVICE.spki)
    link = MqttLink(BrokerSettings(port=port, protocol=ProtocolName.MQTT311), device, b"{}")
    keys = BackendKeys((BACKEND.spki,), network)
    uplink = Uplink(link, spool, device, keys, network, SystemClock(), window=20, resend_s=30)
    begun = time.perf_counter()
    uplink.start()
    highest_kib = filled_kib
    while not uplink.delivered:
        uplink.process(0.05)
        highest_kib = max(highest_kib, rss_kib())
    delivered_s = time.perf_counter() - begun
    uplink.stop(bytes(16))
    ours.send("stop")
    verdicts, in_order = ours.recv()
    backend.join()
    return {
        "batches": count,
        "spooled_s": round(filled_s, 1),
        "delivered_s": round(delivered_s, 1),
        "batches_per_s": round(count / delivered_s),
        "accepted": verdicts.get(Verdict.ACCEPTED.value, 0),
        "in_order_and_once": in_order,
        "memory_grew_spooling_kib": filled_kib - before_kib,
        "memory_grew_sending_kib": highest_kib - filled_kib,
        "spool_mib": round((folder / "spool.db").stat().st_size / 2**20, 1),
    }


def fill(spool: Spool, network: str, count: int) -> None:
    """Seal `count` batches of one minute, two channels at 1 Hz, the last one ending now."""
    from rich.progress import track

    sealer = _sealer(spool, network)
    minutes = count - 1  # the first sample is a batch of its own
    begin_ms = (time.time_ns() // 10**6 - minutes * SEAL_S * 1000) // (SEAL_S * 1000) * SEAL_S * 1000
    for minute in track(range(minutes), "spooling", transient=True):
        for second in range(SEAL_S):
            boot_ms = (minute * SEAL_S + second) * 1000 + 60_000
            samples = {n: Sample(18_000_000 + 4_000 * second, 1_000_000 + 100 * minute % 999, boot_ms) for n in (0, 1)}
            sealer.take(Tick(begin_ms + boot_ms - 60_000, boot_ms, samples))
    sealer.stop()


def serve(folder: Path, pipe: Connection) -> None:
    """Run the embedded backend until told to stop; only this process pays for what it imports."""
    from eth_account import Account

    from ingest.config import BrokerSettings as IngestBroker
    from ingest.config import ChainSettings, HttpSettings, IngestSettings
    from ingest.service import IngestService
    from maxgreen.chain.client import connect
    from maxgreen.chain.deploying import deploy
    from maxgreen.chain.deployment import Governance
    from maxgreen.chain.embedded import dev_secret
    from maxgreen.ledger.book import Book
    from maxgreen.ledger.engine import open_engine
    from maxgreen.ledger.registry import KnownDevice, put_devices
    from maxgreen.verify.rules import DeviceRecord
    from simulator.broker import EmbeddedBroker

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    clock = SystemClock()
    accounts = [Account.from_key(dev_secret(k)) for k in range(3)]
    chain = connect(str(folder / "chain.db"), clock)
    deployment = deploy(chain, accounts[0], accounts[1].address, [accounts[2].address], Governance())
    ledger = f"sqlite:///{folder / 'ledger.db'}"
    engine = open_engine(ledger)
    with engine.begin() as connection:
        record = DeviceRecord(DEVICE.spki, ((0, "active"),))
        system = {"kind": "miner", "channels": [], "place_deci": None, "since_ms": 0}
        put_devices(connection, [KnownDevice(record, 1, accounts[2].address, system)])
    broker = EmbeddedBroker()
    broker.start()
    settings = IngestSettings(
        ledger=ledger,
        broker=IngestBroker(port=broker.port),
        http=HttpSettings(port=0),
        chain=ChainSettings(refresh_s=3600),
    )
    service = IngestService(settings, engine, deployment, BACKEND, clock)
    pipe.send((deployment.network, broker.port))
    threading.Thread(target=lambda: (pipe.recv(), service.stop()), daemon=True).start()
    service.run()
    broker.stop()
    with engine.connect() as connection:
        rows = list(Book(connection).chain_of(key_id(DEVICE.spki)))
    verdicts: dict[str, int] = {}
    for row in rows:
        verdicts[row.verdict] = verdicts.get(row.verdict, 0) + 1
    pipe.send((verdicts, [row.seq for row in rows] == list(range(len(rows)))))


def rss_kib() -> int:
    """Return this process's resident memory, KiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


if __name__ == "__main__":
    main()
