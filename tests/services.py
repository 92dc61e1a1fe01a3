"""The real services of tests and benchmarks, each in a folder of its own, on the loopback interface, ended at the end."""

import json
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from contextlib import contextmanager
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


def wait_for(done, seconds=30.0, what="it"):
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


@contextmanager
def mosquitto_server(folder):
    """A broker that keeps all that is queued: its port."""
    program = found("mosquitto", "mosquitto is not installed (apt-get install mosquitto)")
    port = free_port()
    config = Path(folder) / "mosquitto.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\nmax_inflight_messages 1000\n"
        "max_queued_messages 0\npersistence false\n"
    )
    process = subprocess.Popen([program, "-c", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: socket.create_connection(("127.0.0.1", port), 1).close() is None, what="mosquitto")
        yield port
    finally:
        stop(process)


@contextmanager
def postgres_server(*, durable=False):
    """A private cluster: the URL of its server, without a database. `durable`: it synchronises every commit."""
    programs = _postgres_programs()
    folder, port = Path(tempfile.mkdtemp(prefix="maxgreen-pg-")), free_port()
    as_owner = []
    if os.geteuid() == 0:  # the server refuses to run as root
        user = next((name for name in ("postgres", "nobody") if _has_user(name)), None)
        if user is None or shutil.which("runuser") is None:
            raise MissingError("PostgreSQL needs a user that is not root, and runuser")
        as_owner = ["runuser", "-u", user, "--"]
        shutil.chown(folder, user)
    options = f"-c fsync={'on' if durable else 'off'} -c max_connections=200 -c listen_addresses=127.0.0.1"

    def run(*command, check=True):
        subprocess.run(
            [*as_owner, *command], check=check, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder
        )

    try:
        run(programs / "initdb", "-D", folder / "data", "-U", "maxgreen", "--auth=trust", "--no-sync")
        run(
            programs / "pg_ctl", "-D", folder / "data", "-w", "-l", folder / "log",
            "-o", f"-p {port} -k {folder} {options}", "start",
        )  # fmt: skip
        yield f"postgresql+psycopg://maxgreen@127.0.0.1:{port}"
    finally:
        run(programs / "pg_ctl", "-D", folder / "data", "-m", "immediate", "stop", check=False)
        shutil.rmtree(folder, ignore_errors=True)


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


@contextmanager
def influx_server(folder):
    """A real influxd with a bucket `mg`: (url, token, org, bucket)."""
    program = found(
        CACHE / "influxd-2.9.1" / "influxd", "influxd 2.9.1 is not built (make services, with go and cargo)"
    )
    folder, port = Path(folder), free_port()
    url, token = f"http://127.0.0.1:{port}", INFLUX_TOKEN
    process = subprocess.Popen(
        [
            program, "--bolt-path", folder / "b", "--sqlite-path", folder / "s", "--engine-path", folder / "e",
            "--http-bind-address", f"127.0.0.1:{port}", "--reporting-disabled", "--log-level", "error",
        ]
    )  # fmt: skip
    try:
        wait_for(lambda: urllib.request.urlopen(f"{url}/health", timeout=2).status == 200, what="influxd")
        body = {"username": "u", "password": "password", "org": "maxgreen", "bucket": "mg", "token": token}
        request = urllib.request.Request(
            f"{url}/api/v2/setup", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=10).read()
        yield url, token, "maxgreen", "mg"
    finally:
        stop(process)
