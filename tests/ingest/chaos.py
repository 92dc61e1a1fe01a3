"""Ingest while its servers are killed and stopped at random, and a look at what is left at the end.

    python -m tests.ingest.chaos FOLDER KILLS [sqlite|postgresql] [SEED]

Devices send a batch ten times a second and send again until they hold a receipt; Mosquitto, PostgreSQL, InfluxDB, the
service and one of its judging processes are killed (and begun again) or stopped for a while. Prints one JSON object:
what was done to whom, batches made, lost and doubled, receipts that said too much, whether the view is the ledger.
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
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from sqlalchemy import func, select

from maxgreen.ledger.schema import batches
from maxgreen.protocol.backend import decode_receipt
from maxgreen.protocol.cose import network_digest, parse
from maxgreen.protocol.identity import ROOT, device_topic
from simulator.lab import Lab
from tests.ingest.site import MAXGREEN, Site
from tests.services import Influx, Mosquitto, Postgres, running, stop, wait_for

DEVICES = 12
EVERY_S = 0.1
AGAIN_S = 2.0
WINDOW = 60


class Devices:
    """Devices that make batches and send them until they hold a receipt, over one connection."""

    def __init__(self, network, port):
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
        self.client.connect_async("127.0.0.1", port)
        self.client.loop_start()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

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
    """`maxgreen ingest run`, which must end only when it is killed."""

    def __init__(self, site, more):
        self.site, self.more = site, more

    def start(self):
        self.process = self.site.service(processes=2, more=self.more)

    def pids(self):
        pid = self.process.pid
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]

    def kill(self):
        self.process.kill()
        self.process.wait()


class Judge:
    """One of the service's judging processes; the service begins another by itself."""

    def __init__(self, service, chance):
        self.service, self.chance = service, chance

    def start(self):
        pass

    def pids(self):
        return [self.chance.choice(self.service.pids()[1:] or self.service.pids()[:1])]

    def kill(self):
        found = self.service.pids()[1:]
        if found:
            os.kill(self.chance.choice(found), signal.SIGKILL)


def disturb(server, chance):
    """Kill a server and begin it again, or stop it for a while; return what was done."""
    if chance.random() < 0.6:
        server.kill()
        time.sleep(chance.uniform(0, 1))
        server.start()
        return "killed"
    pids = server.pids()
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:  # a connection of PostgreSQL that has ended
                pass
        if number == signal.SIGSTOP:
            time.sleep(chance.uniform(0.2, 3))
    return "stopped"


def chaos(folder, kills, database, seed):
    chance, done = random.Random(seed), Counter()
    with ExitStack() as stack:
        broker = stack.enter_context(running(Mosquitto(folder, persistence=True)))
        influx = stack.enter_context(running(Influx(folder / "influx")))
        servers = {"mosquitto": broker, "influxd": influx}
        url = f"sqlite:///{folder}/ledger.db"
        if database == "postgresql":
            import psycopg

            servers["postgresql"] = stack.enter_context(running(Postgres(durable=True)))
            url = f"{servers['postgresql'].url}/ledger"
            with psycopg.connect(url.replace("+psycopg", "").replace("/ledger", "/postgres"), autocommit=True) as db:
                db.execute("CREATE DATABASE ledger")
        site = Site(folder, url, broker.port, [Lab(secret) for secret in range(1, DEVICES + 1)])
        (folder / "token").write_text(influx.token)
        service = Service(
            site,
            f'[influx]\nurl = "{influx.url}"\ntoken_file = "{folder}/token"\norg = "{influx.org}"\n'
            f'bucket = "{influx.bucket}"\n',
        )
        servers |= {"service": service, "judge": Judge(service, chance)}
        service.start()
        stack.callback(lambda: stop(service.process))
        devices = Devices(site.network, broker.port)
        stack.callback(devices.end)
        wait_for(lambda: sum(devices.told.values()) > 0, 300, "the first receipt")
        for _ in range(kills):
            time.sleep(chance.uniform(0.1, 1.5))
            name = chance.choice(sorted(servers))
            done[f"{name} {disturb(servers[name], chance)}"] += 1
            if service.process.poll() is not None:
                raise AssertionError(f"the service ended by itself: {site.log()[-3_000:]}")
        devices.making = False
        begun_s = time.monotonic()
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
            "seed": seed,
            "done": dict(sorted(done.items())),
            "batches": sum(made.values()),
            "lost": sum(count - held.get(device, (0, 0))[0] for device, count in made.items()),
            "doubled": sum(rows - seqs for rows, seqs in held.values()),
            "told_too_much": sum(devices.told[device] > held.get(device, (0, 0))[0] for device in made),
            "caught_up_s": round(took_s, 1),
            "ledger_is_whole": _says(site, "check"),
            "view_is_ledger": True,
        }


def _says(site, command):
    config = site.folder / "ingest.toml"
    return subprocess.run([MAXGREEN, "ingest", command, "-c", config], capture_output=True).returncode == 0


if __name__ == "__main__":
    where = Path(sys.argv[1])
    where.mkdir(parents=True, exist_ok=True)
    which = sys.argv[3] if len(sys.argv) > 3 else "sqlite"
    number = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    print(json.dumps(chaos(Path(tempfile.mkdtemp(dir=where)), int(sys.argv[2]), which, number)))
