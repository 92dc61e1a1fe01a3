"""Fixtures: real services where this machine has them, else a skip with its reason (a failure on CI)."""

import json
import os
import shutil
import subprocess
import urllib.request
import uuid
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.services import MissingError, free_port, influx_server, old_influx_server, postgres_server, stop, wait_for

ROOT = Path(__file__).parent.parent
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


@contextmanager
def served(server):
    """Run a service, or skip; on CI a missing one is a failure."""
    with ExitStack() as stack:
        try:
            running = stack.enter_context(server)
        except MissingError as error:
            need(None, str(error))
        yield running


@pytest.fixture(scope="session")
def mosquitto_program() -> str:
    found = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
    return need(found, "mosquitto is not installed (apt-get install mosquitto)")


@pytest.fixture(scope="session")
def postgres():
    """A private PostgreSQL cluster: the URL of its server, without a database."""
    with served(postgres_server()) as url:
        yield url


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


@pytest.fixture(scope="session", params=[influx_server, old_influx_server], ids=["influxdb2", "influxdb1"])
def influx(request, tmp_path_factory):
    """A real influxd of each version with a bucket `mg`: (url, token, org, bucket)."""
    with served(request.param(tmp_path_factory.mktemp("influx"))) as running:
        yield running


@contextmanager
def running_anvil(*arguments):
    """Run a real anvil: its URL."""
    program = need(ROOT / "contracts/node_modules/.bin/anvil", "anvil is not installed (make services)")
    port = free_port()
    process = subprocess.Popen([program, "--port", str(port), "--silent", *arguments])
    url = f"http://127.0.0.1:{port}"
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        wait_for(lambda: urllib.request.urlopen(request, timeout=2).status == 200, what="anvil")
        yield url
    finally:
        stop(process)


@pytest.fixture(scope="session")
def anvil():
    """A real anvil: its URL."""
    with running_anvil() as url:
        yield url
