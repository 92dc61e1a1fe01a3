"""The pages as a process: what they wait for, what they refuse, how they end."""

import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from maxgreen.chain.client import connect
from maxgreen.clock import SystemClock
from tests.conftest import running_anvil
from tests.dapp.conftest import MORNING
from tests.services import free_port, stop, wait_for

pytestmark = pytest.mark.services
MAXGREEN = Path(sys.executable).with_name("maxgreen")


def begin(folder, rpc, port, **more):
    values = {"port": port, "url": f"http://127.0.0.1:{port}", **more}
    http = "".join(f"{name} = {value!r}\n".replace("'", '"') for name, value in values.items())
    config = folder / f"dapp-{port}.toml"
    config.write_text(
        f'ledger = "sqlite:///{folder / "ledger.db"}"\nevidence = "{folder / "evidence"}"\nrpc = "{rpc}"\n'
        f'deployment = "{folder / "deployment.json"}"\nstate_file = "{folder / "dapp.db"}"\n[http]\n{http}'
    )
    log = (folder / f"log-{port}").open("a")
    process = subprocess.Popen([MAXGREEN, "dapp", "run", "-c", config], stdout=log, stderr=log)
    return process, lambda: (folder / f"log-{port}").read_text()


def ready(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_they_wait_for_a_chain_and_end_when_told(site, tmp_path):
    rpc = site.story.world.chain.web3.provider.endpoint_uri
    site.story.deployment.addresses.save(tmp_path / "deployment.json")
    process, _ = begin(tmp_path, rpc, port := free_port())
    twin, said = None, None
    try:
        wait_for(lambda: ready(port), 60, "the pages")
        twin, said = begin(tmp_path, rpc, port)
        wait_for(lambda: f"is in use by 'maxgreen dapp', process {process.pid}" in said(), 60, "that the second waits")
        assert twin.poll() is None
    finally:
        stop(process)
        if twin is not None:
            wait_for(lambda: ready(port), 60, "that the second takes over")
            stop(twin)
    assert process.returncode == 0
    nowhere, log = begin(tmp_path, f"http://127.0.0.1:{free_port()}", other := free_port())
    try:
        wait_for(lambda: "waiting: the chain does not answer" in log(), 90, "that it waits")
        assert nowhere.poll() is None
        [said] = [line for line in log().splitlines() if line]
        assert said.startswith(
            "WARNING maxgreen.service: waiting: the chain does not answer at 127.0.0.1: no connection"
        )
        assert not ready(other)
    finally:
        stop(nowhere)


def test_another_chain_is_refused(site, tmp_path):
    site.story.deployment.addresses.save(tmp_path / "deployment.json")
    with running_anvil(*MORNING) as rpc:  # the same chain id, and nothing on it
        assert connect(rpc, SystemClock()).chain_id == site.world.deployment.addresses.chain_id
        process, log = begin(tmp_path, rpc, free_port())
        assert process.wait(90) == 78
    assert "there is no contract at" in log()
