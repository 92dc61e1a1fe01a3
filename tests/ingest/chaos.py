"""Ingest while its servers are killed and stopped at random, and a look at what is left at the end.

    python -m tests.ingest.chaos FOLDER KILLS [sqlite|postgresql] [SEED] [mosquitto|nats] [SECONDS] [ONLY]

Devices send a batch ten times a second and send again until they hold a receipt; broker, database, InfluxDB, the service
and one of its judging processes are killed (and begun again) or stopped for a while, networks are cut, slow or silent, the
ledger's disk is full or slow, the clock steps. `nats`: a cluster of three nodes, and two services. One trouble each
SECONDS; ONLY whose name begins so. Prints one JSON object: what was done to whom, batches made, lost and doubled, receipts
that said too much, whether the view is the ledger.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from contextlib import ExitStack, suppress
from pathlib import Path

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from sqlalchemy import func, select

from maxgreen.ledger.schema import batches
from maxgreen.protocol.backend import decode_receipt
from maxgreen.protocol.cose import network_digest, parse
from maxgreen.protocol.identity import ROOT, device_topic
from simulator.lab import Lab
from tests.ingest.desks import LATER
from tests.ingest.site import MAXGREEN, Site
from tests.proxy import Proxy
from tests.services import Influx, Mosquitto, Nats, Postgres, running, stop, wait_for

DEVICES = 12
EVERY_S = 0.1
AGAIN_S = 2.0
WINDOW = 60


class Devices:
    """Devices that make batches and send them until they hold a receipt, over one connection."""

    def __init__(self, network, ports):
        self.labs = [Lab(secret, head=network_digest(network)) for secret in range(1, DEVICES + 1)]
        self.network = network
        self.made = {lab.device: [] for lab in self.labs}
        self.told = dict.fromkeys(self.made, 0)
        self.sent = dict.fromkeys(self.made, (0, 0.0))  # up to which seq, and when the oldest was sent last
        self.making = True
        self.ended = threading.Event()
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="devices", clean_session=False)
        self.client.on_connect = lambda client, *_: client.subscribe(f"{ROOT}/+/+/receipt", 1)
        self.client.on_message = self._hear
        self.client.reconnect_delay_set(1, 1)
        self.ports = deque(ports)
        self.client.on_disconnect = self._turn
        self.client.connect_async("127.0.0.1", self.ports[0])
        self.client.loop_start()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _turn(self, client, *_):
        """Try another node next."""
        self.ports.rotate(1)
        if len(self.ports) > 1 and not self.ended.is_set():
            client.connect_async("127.0.0.1", self.ports[0])

    def _hear(self, _client, _data, message):
        receipt = decode_receipt(parse(message.payload).payload)
        self.told[receipt.device] = max(self.told[receipt.device], receipt.next_seq)

    def _run(self):
        while not self.ended.wait(EVERY_S):
            now_s = time.monotonic()
            for lab in self.labs:
                made = self.made[lab.device]
                if self.making:
                    made.append(lab.sign(lab.batch([(1, 1)]), network=self.network))
                told, (sent, at_s) = self.told[lab.device], self.sent[lab.device]
                if now_s - at_s > AGAIN_S:
                    sent, at_s = told, now_s
                first, last = max(sent, told), min(len(made), told + WINDOW)
                if not self.client.is_connected():
                    continue
                for seq in range(first, last):
                    self.client.publish(device_topic(lab.device, "batch"), made[seq], qos=1)
                self.sent[lab.device] = (max(first, last), at_s)

    def are_done(self):
        return all(self.told[device] == len(made) for device, made in self.made.items())

    def end(self):
        self.ended.set()
        self.thread.join()
        self.client.disconnect()
        self.client.loop_stop()


class Service:
    """`maxgreen ingest run` on a machine of its own (host name, process ids), which must end only when it is killed."""

    def __init__(self, site, name, more, environment):
        self.site, self.name, self.more, self.environment = site, name, more, environment

    def start(self):
        self.process = self.site.service(
            self.name, processes=2, more=self.more, environment=self.environment, before=_machine(self.name)
        )

    def pids(self):
        return _family(self.process.pid)

    def kill(self):
        self.process.kill()
        self.process.wait()


class Judge:
    """One of a service's judging processes; the service begins another by itself."""

    def __init__(self, services, chance):
        self.services, self.chance = services, chance

    def start(self):
        pass

    def pids(self):
        pids = [pid for service in self.services for pid in service.pids() if b"spawn_main" in _arguments(pid)]
        return self.chance.sample(pids, min(1, len(pids)))

    def kill(self):
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Network:
    """The networks to the servers: cut, slow, or silent for a while."""

    def __init__(self, proxies):
        self.proxies = proxies

    def disturb(self, chance):
        proxy, how = chance.choice(self.proxies), chance.choice(["cut", "silent", "slow"])
        if how == "cut":
            proxy.cut()
            return how
        proxy.silent, proxy.bytes_per_s, proxy.delay_s = how == "silent", 200_000, 0.02
        time.sleep(chance.uniform(0.2, 4))
        proxy.silent, proxy.bytes_per_s, proxy.delay_s = False, 0, 0.0
        return how


class Disk:
    """The ledger's disk: full or slow for a while (disk.c)."""

    def __init__(self, folder):
        self.trouble = folder / "trouble"
        library, source = folder / "disk.so", Path(__file__).with_name("disk.c")
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        self.library = library

    def environment(self, folder):
        return {"LD_PRELOAD": str(self.library), "DISK_TROUBLE": str(self.trouble), "DISK_FOLDER": str(folder)}

    def disturb(self, chance):
        how = chance.choice(["full", "slow"])
        self.trouble.write_text(how)
        time.sleep(chance.uniform(0.2, 3))
        self.trouble.unlink()
        return how


class Time:
    """The clock of the services: it steps, forward and back."""

    def __init__(self, file):
        self.file, self.now_ms = file, LATER + 10 * 86_400_000

    def disturb(self, chance):
        self.file.write_text(str(self.now_ms + chance.randrange(-1_500_000, 1_500_000)))
        return "stepped"


def disturb(server, chance):
    """Kill a server and begin it again, or stop it for a while; return what was done."""
    if hasattr(server, "disturb"):
        return server.disturb(chance)
    if chance.random() < 0.6:
        server.kill()
        time.sleep(chance.uniform(0, 1))
        server.start()
        return "killed"
    pids = server.pids()
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in pids:
            with suppress(ProcessLookupError):  # a connection of PostgreSQL that has ended
                os.kill(pid, number)
        if number == signal.SIGSTOP:
            time.sleep(chance.uniform(0.2, 3))
    return "stopped"


class World:
    """The servers, services and devices of a run, and who can disturb them, by name."""

    def __init__(self, folder, database, broker, chance, stack):
        self.troubles, proxies = {}, []

        def through(port):
            proxies.append(Proxy(port))
            stack.callback(proxies[-1].close)
            return proxies[-1].port

        disk = Disk(folder)
        influx = stack.enter_context(running(Influx(folder / "influx")))
        if broker == "nats":
            cluster = stack.enter_context(running(Nats(folder / "nats", 3)))
            ports = cluster.ports
            self.troubles |= {f"nats node {k}": node for k, node in enumerate(cluster.nodes, 1)}
            servers = ", ".join(f'"nats://127.0.0.1:{through(int(one.rpartition(":")[2]))}"' for one in cluster.servers)
            others = ", ".join(f'"127.0.0.1:{port}"' for port in ports[1:])
            more, behind = f"[nats]\nservers = [{servers}]\nack_wait_s = 10\n", f"others = [{others}]\n"
        else:
            mosquitto = stack.enter_context(running(Mosquitto(folder, persistence=True)))
            ports, more, behind = [mosquitto.port], "", ""
            self.troubles["mosquitto"] = mosquitto
        url, environment = f"sqlite:///{folder}/ledger/ledger.db", disk.environment(folder / "ledger")
        (folder / "ledger").mkdir()
        direct = url
        if database == "postgresql":
            import psycopg

            postgres = Postgres(durable=True)
            postgres.environment, environment = disk.environment(postgres.data), {}
            self.troubles["postgresql"] = stack.enter_context(running(postgres))
            with psycopg.connect(f"{postgres.url}/postgres".replace("+psycopg", ""), autocommit=True) as db:
                db.execute("CREATE DATABASE ledger")
            direct = f"{postgres.url}/ledger"
            url = direct.replace(str(postgres.port), str(through(postgres.port)))
        labs = [Lab(secret) for secret in range(1, DEVICES + 1)]
        self.site = Site(folder, direct, ports[0] if broker == "nats" else through(ports[0]), labs, behind)
        self.site.url = url
        clock = Time(folder / "clock")
        clock.file.write_text(str(clock.now_ms))
        (folder / "token").write_text(influx.token)
        more += (
            f'[influx]\nurl = "http://127.0.0.1:{through(influx.port)}"\ntoken_file = "{folder}/token"\n'
            f'org = "{influx.org}"\nbucket = "{influx.bucket}"\n'
        )
        names = ["ingest", "ingest2"] if broker == "nats" else ["ingest"]
        self.services = [Service(self.site, name, more, environment) for name in names]
        for service in self.services:
            service.start()
            stack.callback(lambda service=service: stop(service.process))
        self.devices = Devices(self.site.network, ports)
        stack.callback(self.devices.end)
        self.troubles |= {service.name: service for service in self.services}
        self.troubles |= {
            "influxd": influx, "judge": Judge(self.services, chance), "network": Network(proxies), "disk": disk,
            "clock": clock,
        }  # fmt: skip

    def check(self):
        for service in self.services:
            if service.process.poll() is not None:
                raise AssertionError(f"{service.name} ended by itself: {self.site.log(service.name)[-3_000:]}")


def chaos(folder, kills, database, seed, broker="mosquitto", every_s=(0.1, 1.5), only=""):
    """Disturb whoever `only` names the beginning of, so many times."""
    chance, done = random.Random(seed), Counter()
    with ExitStack() as stack:
        world = World(folder, database, broker, chance, stack)
        site, devices = world.site, world.devices
        wait_for(lambda: sum(devices.told.values()) > 0, 300, "the first receipt")
        begun_s = time.monotonic()
        for _ in range(kills):
            time.sleep(chance.uniform(*every_s))
            name = chance.choice(sorted(name for name in world.troubles if name.startswith(only)))
            done[f"{name} {disturb(world.troubles[name], chance)}"] += 1
            world.check()
        devices.making = False
        lasted_s, begun_s = time.monotonic() - begun_s, time.monotonic()
        wait_for(devices.are_done, 300, f"every receipt: {devices.told}")
        took_s = time.monotonic() - begun_s
        with site.engine.begin() as connection:
            query = select(batches.c.device, func.count(), func.max(batches.c.seq)).where(
                batches.c.verdict == "accepted"
            )
            held = {row[0]: (row[1], row[2] + 1) for row in connection.execute(query.group_by(batches.c.device))}
        wait_for(lambda: _says(site, "compare-view"), 300, "the view as the ledger")
        made = {device: len(messages) for device, messages in devices.made.items()}
        return {
            "database": database,
            "broker": broker,
            "seed": seed,
            "done": dict(sorted(done.items())),
            "batches": sum(made.values()),
            "batches_per_s": round(sum(made.values()) / lasted_s, 1),
            "lost": sum(count - held.get(device, (0, 0))[0] for device, count in made.items()),
            "doubled": sum(rows - seqs for rows, seqs in held.values()),
            "told_too_much": sum(devices.told[device] > held.get(device, (0, 0))[0] for device in made),
            "caught_up_s": round(took_s, 1),
            "ledger_is_whole": _says(site, "check"),
            "view_is_ledger": True,
        }


def _machine(name):
    """Return what lets a command run as on another machine."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    rename = f'hostname {name}; exec "$@"'
    return ["unshare", *user, "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", rename, "sh"]


def _family(pid):
    """Return a process and those that it began."""
    try:
        begun = [int(one) for task in Path(f"/proc/{pid}/task").iterdir() for one in _children(task)]
    except OSError:
        return []
    return [pid, *(one for child in begun for one in _family(child))]


def _children(task):
    try:
        return (task / "children").read_text().split()
    except OSError:
        return []


def _arguments(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _says(site, command):
    config = site.folder / "ingest.toml"
    return subprocess.run([MAXGREEN, "ingest", command, "-c", config], capture_output=True).returncode == 0


if __name__ == "__main__":
    where = Path(sys.argv[1])
    where.mkdir(parents=True, exist_ok=True)
    which = sys.argv[3] if len(sys.argv) > 3 else "sqlite"
    number = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    behind = sys.argv[5] if len(sys.argv) > 5 else "mosquitto"
    pause = (float(sys.argv[6]),) * 2 if len(sys.argv) > 6 else (0.1, 1.5)
    whom = sys.argv[7] if len(sys.argv) > 7 else ""
    made = Path(tempfile.mkdtemp(dir=where))
    print(json.dumps(chaos(made, int(sys.argv[2]), which, number, behind, pause, whom)))
