"""The real services of tests and benchmarks, each in a folder of its own, on the loopback interface, ended at the end."""

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "maxgreen"
INFLUX_TOKEN = "test-token"


class MissingError(Exception):
    """A service is not on this machine; the message says how to have it."""


def found(program, hint):
    """Return a program's path; MissingError when it is not there."""
    path = Path(program) if "/" in str(program) else Path(shutil.which(program) or f"/usr/sbin/{program}")
    if not path.exists():
        raise MissingError(hint)
    return path


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(done, seconds=120.0, what="it"):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if answer := done():
                return answer
        except (OSError, AssertionError):
            pass
        time.sleep(0.02)
    raise AssertionError(f"{what} did not happen within {seconds} s")


def stop(process):
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Server:
    """A server process that can be ended, killed, and begun again with what it had stored."""

    process = None

    def start(self):
        """Start, and wait until it answers."""
        self.process = subprocess.Popen(self.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(self.answers, 60, type(self).__name__)

    def stop(self):
        """End it."""
        if self.process is not None:
            stop(self.process)

    def pids(self):
        """Return all of its processes."""
        return [self.process.pid]

    def kill(self):
        """Kill it: nothing more is written."""
        self.process.kill()
        self.process.wait()


class Mosquitto(Server):
    """A broker that keeps all that is queued."""

    def __init__(self, folder, *, persistence=False):
        self.program = found("mosquitto", "mosquitto is not installed (apt-get install mosquitto)")
        self.port = free_port()
        self.config = Path(folder) / "mosquitto.conf"
        self.config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n"
            "max_inflight_messages 1000\nmax_queued_messages 0\n"
            + (f"persistence true\npersistence_location {folder}/\n" if persistence else "persistence false\n")
        )

    def command(self):
        return [self.program, "-c", self.config]

    def answers(self):
        return socket.create_connection(("127.0.0.1", self.port), 1).close() is None


class Nats:
    """A NATS cluster with JetStream and MQTT, whose nodes can be ended, killed, and begun again."""

    def __init__(self, folder, nodes=1):
        program = found(
            CACHE / "nats-server-2.15.2" / "nats-server", "nats-server 2.15.2 is not built (make services, with go)"
        )
        ports = [(free_port(), free_port(), free_port()) for _ in range(nodes)]
        routes = ", ".join(f"nats://127.0.0.1:{route}" for _, _, route in ports)
        cluster = (
            "" if nodes == 1 else "cluster {{ name: mg, listen: 127.0.0.1:{2}, routes: [{3}], no_advertise: true }}\n"
        )
        self.nodes = [
            NatsNode(program, Path(folder) / f"n{k}", one, cluster.format(*one, routes), nodes)
            for k, one in enumerate(ports)
        ]
        self.servers = [f"nats://127.0.0.1:{client}" for client, _, _ in ports]
        self.ports = [mqtt for _, mqtt, _ in ports]

    def start(self):
        for node in self.nodes:
            node.process = subprocess.Popen(node.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for node in self.nodes:
            wait_for(node.answers, 60, "NATS")

    def stop(self):
        for node in self.nodes:
            node.stop()


class NatsNode(Server):
    """One node of a cluster."""

    def __init__(self, program, folder, ports, cluster, nodes):
        self.program, self.port = program, ports[1]
        folder.mkdir(parents=True)
        self.config = folder / "nats.conf"
        self.config.write_text(
            f"server_name: {folder.name}\nlisten: 127.0.0.1:{ports[0]}\nmax_payload: 128KB\n"
            f'jetstream {{ store_dir: "{folder}", max_memory_store: 64MB, max_file_store: 2GB }}\n{cluster}'
            f"mqtt {{ listen: 127.0.0.1:{ports[1]}, stream_replicas: {nodes}, max_ack_pending: 1024 }}\n"
        )

    def command(self):
        return [self.program, "-c", self.config]

    def answers(self):
        """Tell whether an MQTT client is taken: its streams have a leader."""
        with socket.create_connection(("127.0.0.1", self.port), 30) as probe:
            probe.settimeout(30)
            probe.sendall(b"\x10\x11\x00\x04MQTT\x04\x02\x00\x3c\x00\x05probe")
            return probe.recv(4) == b"\x20\x02\x00\x00"


class Postgres(Server):
    """A private cluster; `durable`: it synchronises every commit."""

    def __init__(self, *, durable=False):
        self.programs = _postgres_programs()
        self.as_owner = []
        if os.geteuid() == 0:  # the server refuses to run as root
            user = next((name for name in ("postgres", "nobody") if _has_user(name)), None)
            if user is None or shutil.which("runuser") is None:
                raise MissingError("PostgreSQL needs a user that is not root, and runuser")
            self.as_owner = ["runuser", "-u", user, "--"]
        self.folder, self.port = Path(tempfile.mkdtemp(prefix="maxgreen-pg-")), free_port()
        if self.as_owner:
            shutil.chown(self.folder, user)
        self.options = f"-c fsync={'on' if durable else 'off'} -c max_connections=200 -c listen_addresses=127.0.0.1"
        self.url = f"postgresql+psycopg://maxgreen@127.0.0.1:{self.port}"
        self.data, self.environment = self.folder / "data", {}
        self._run(self.programs / "initdb", "-D", self.data, "-U", "maxgreen", "--auth=trust", "--no-sync")

    def start(self):
        self._run(
            self.programs / "pg_ctl", "-D", self.data, "-w", "-l", self.folder / "log",
            "-o", f"-p {self.port} -k {self.folder} {self.options}", "start",
        )  # fmt: skip

    def stop(self):
        self._run(self.programs / "pg_ctl", "-D", self.data, "-m", "immediate", "stop", check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def pids(self):
        first = int((self.data / "postmaster.pid").read_text().split()[0])
        return [first, *map(int, Path(f"/proc/{first}/task/{first}/children").read_text().split())]

    def kill(self):
        pids = self.pids()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 30, "the end of PostgreSQL")

    def _run(self, *command, check=True):
        subprocess.run(
            [*self.as_owner, *command], check=check, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            cwd=self.folder, env={**os.environ, **self.environment},
        )  # fmt: skip


class Influx(Server):
    """A real influxd with a bucket `mg`."""

    org, bucket, token = "maxgreen", "mg", INFLUX_TOKEN

    def __init__(self, folder):
        self.program = found(
            CACHE / "influxd-2.9.1" / "influxd", "influxd 2.9.1 is not built (make services, with go and cargo)"
        )
        self.folder, self.port = Path(folder), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.is_set_up = False

    def command(self):
        return [
            self.program, "--bolt-path", self.folder / "b", "--sqlite-path", self.folder / "s",
            "--engine-path", self.folder / "e", "--http-bind-address", f"127.0.0.1:{self.port}",
            "--reporting-disabled", "--log-level", "error",
        ]  # fmt: skip

    def answers(self):
        return urllib.request.urlopen(f"{self.url}/health", timeout=2).status == 200

    def start(self):
        super().start()
        if self.is_set_up:
            return
        body = {"username": "u", "password": "password", "org": self.org, "bucket": self.bucket, "token": self.token}
        request = urllib.request.Request(
            f"{self.url}/api/v2/setup", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=10).read()
        self.is_set_up = True


class OldInflux(Server):
    """A real influxd of the first version, with users, and a database `mg`."""

    org, bucket, token = "", "mg", "tester:password"

    def __init__(self, folder):
        self.program = found(
            CACHE / "influxd-1.13.2" / "influxd", "influxd 1.13.2 is not built (make services, with go)"
        )
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.config = Path(folder) / "influxdb.conf"
        self.config.write_text(
            f'reporting-disabled = true\nbind-address = "127.0.0.1:{free_port()}"\n[meta]\ndir = "{folder}/meta"\n'
            f'[data]\ndir = "{folder}/data"\nwal-dir = "{folder}/wal"\n'
            f'[http]\nbind-address = "127.0.0.1:{self.port}"\nauth-enabled = true\nlog-enabled = false\n'
            "[monitor]\nstore-enabled = false\n"
        )
        self.is_set_up = False

    def command(self):
        return [self.program, "run", "-config", self.config]

    def answers(self):
        return urllib.request.urlopen(f"{self.url}/ping", timeout=2).status == 204

    def start(self):
        super().start()
        if not self.is_set_up:
            self.ask("CREATE USER tester WITH PASSWORD 'password' WITH ALL PRIVILEGES")
            self.ask(f"CREATE DATABASE {self.bucket}")
            self.is_set_up = True

    def ask(self, text):
        request = urllib.request.Request(
            f"{self.url}/query", urllib.parse.urlencode({"q": text}).encode(), {"Authorization": f"Token {self.token}"}
        )
        answer = json.loads(urllib.request.urlopen(request, timeout=20).read())
        assert "error" not in str(answer), answer


@contextmanager
def running(server):
    """A server, from its start to its end."""
    try:
        server.start()
        yield server
    finally:
        server.stop()


@contextmanager
def mosquitto_server(folder):
    """A broker that keeps all that is queued: its port."""
    with running(Mosquitto(folder)) as server:
        yield server.port


@contextmanager
def postgres_server(*, durable=False):
    """A private cluster: the URL of its server, without a database."""
    with running(Postgres(durable=durable)) as server:
        yield server.url


@contextmanager
def influx_server(folder):
    """A real influxd of version 2 with a bucket `mg`: (url, token, org, bucket)."""
    with running(Influx(folder)) as server:
        yield server.url, server.token, server.org, server.bucket


@contextmanager
def old_influx_server(folder):
    """A real influxd of version 1 with a database `mg`: (url, token, org, bucket)."""
    with running(OldInflux(folder)) as server:
        yield server.url, server.token, server.org, server.bucket


def _postgres_programs():
    path = shutil.which("initdb") or max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), default=None, key=str)
    if path is None:
        raise MissingError("PostgreSQL is not installed (apt-get install postgresql)")
    return Path(path).resolve().parent


def _has_user(name):
    try:
        return bool(pwd.getpwnam(name))
    except KeyError:
        return False
