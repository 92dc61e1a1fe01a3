"""Fixtures: real services where this machine has them, else a skip with its reason (a failure on CI)."""

import json
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "maxgreen"
TRACES = [
    ROOT / "simulator/traces/sandia6kw_20151111_1min_ina219.csv",
    *sorted((ROOT / "tests/data").glob("*_ina219.csv")),
]


def need(program: Path | str | None, reason: str) -> str:
    """Return a program's path, or skip; on CI a missing service is a failure."""
    if program is not None and Path(program).exists():
        return str(program)
    if os.environ.get("CI") == "true":
        pytest.fail(f"on CI, but {reason}")
    pytest.skip(reason)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(done, seconds=30.0, what="it"):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if found := done():
                return found
        except (OSError, AssertionError):
            pass
        time.sleep(0.02)
    raise AssertionError(f"{what} did not happen within {seconds} s")


def stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def mosquitto_program() -> str:
    found = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
    return need(found, "mosquitto is not installed (apt-get install mosquitto)")


@pytest.fixture(scope="session")
def postgres(tmp_path_factory):
    """A private PostgreSQL cluster: the URL of its server, without a database."""
    found = shutil.which("initdb") or max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), default=None, key=str)
    programs = Path(need(found, "PostgreSQL is not installed (apt-get install postgresql)")).resolve().parent
    folder, port = Path(tempfile.mkdtemp(prefix="maxgreen-pg-")), free_port()
    as_owner = []
    if os.geteuid() == 0:  # the server refuses to run as root
        user = next((name for name in ("postgres", "nobody") if _has_user(name)), None)
        need(shutil.which("runuser") if user else None, "PostgreSQL needs a user that is not root, and runuser")
        as_owner = ["runuser", "-u", user, "--"]
        shutil.chown(folder, user)
    options = "-c fsync=off -c max_connections=200 -c listen_addresses=127.0.0.1"
    try:
        subprocess.run(
            [*as_owner, programs / "initdb", "-D", folder / "data", "-U", "maxgreen", "--auth=trust", "--no-sync"],
            check=True, stdout=subprocess.DEVNULL, cwd=folder,
        )  # fmt: skip
        subprocess.run(
            [
                *as_owner, programs / "pg_ctl", "-D", folder / "data", "-w", "-l", folder / "log",
                "-o", f"-p {port} -k {folder} {options}", "start",
            ],
            check=True, stdout=subprocess.DEVNULL, cwd=folder,
        )  # fmt: skip
        yield f"postgresql+psycopg://maxgreen@127.0.0.1:{port}"
    finally:
        subprocess.run(
            [*as_owner, programs / "pg_ctl", "-D", folder / "data", "-m", "immediate", "stop"],
            stdout=subprocess.DEVNULL, cwd=folder,
        )  # fmt: skip
        shutil.rmtree(folder, ignore_errors=True)


def _has_user(name):
    try:
        return bool(pwd.getpwnam(name))
    except KeyError:
        return False


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request, tmp_path):
    """The URL of an empty ledger, on each database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    import psycopg

    server, name = request.getfixturevalue("postgres"), f"t{uuid.uuid4().hex}"
    with psycopg.connect(server.replace("+psycopg", "") + "/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{server}/{name}"


@pytest.fixture(scope="session")
def influx(tmp_path_factory):
    """A real influxd with a bucket `mg`: (url, token, org, bucket)."""
    program = need(CACHE / "influxd-2.9.1" / "influxd", "influxd 2.9.1 is not built (make services, with go and cargo)")
    folder, port = tmp_path_factory.mktemp("influx"), free_port()
    url, token = f"http://127.0.0.1:{port}", "test-token"
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


@pytest.fixture(scope="session")
def anvil():
    """A real anvil: its URL."""
    program = need(ROOT / "contracts/node_modules/.bin/anvil", "anvil is not installed (make services)")
    port = free_port()
    process = subprocess.Popen([program, "--port", str(port), "--silent"])
    url = f"http://127.0.0.1:{port}"
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        wait_for(lambda: urllib.request.urlopen(request, timeout=2).status == 200, what="anvil")
        yield url
    finally:
        stop(process)
