"""docs/operator.md, from an empty machine to ten devices: every command as printed, on Debian 12 and 13, real services.

The root has no systemd, so `systemctl` is tests/deploy/systemctl.py, which starts the units as they are written. After
the installation the machine has no network but its own loopback interface. `make guide` runs it on both; without, the
newer one has to do.
"""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, need
from tests.deploy.roots import unpacked

pytestmark = [pytest.mark.services, pytest.mark.timeout(2_400)]
ANVIL = ROOT / "contracts/node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil"
SUDO = """#!/bin/sh
user=root
[ "$1" = -u ] && { user=$2; shift 2; }
[ $user = root ] && exec "$@"
exec runuser -u $user -- "$@"
"""
PASSWORD = "a password of some length"
ADMIT = """
import json, sys
from pathlib import Path
from eth_account import Account
from maxgreen.actions.wallet import load_account
from maxgreen.chain.client import connect
from maxgreen.chain.dao import Dao
from maxgreen.chain.deployment import Addresses, Deployment
from maxgreen.chain.registry import admission, apply_for
from maxgreen.clock import SystemClock
from maxgreen.keyfile import load_key_file
from simulator.site import miner_system, node_system

deployment = Deployment(connect("http://127.0.0.1:8545", SystemClock()), Addresses.load(Path("/etc/maxgreen/deployment.json")))
members = [load_account(name) for name in ("ana", "bo", "cy")]
keys = [load_key_file(Path(folder) / "signing.pem") for folder in sys.argv[1:]]
for begin in range(0, len(keys), 5):
    numbers = [
        apply_for(deployment, members[0], key, node_system(9_000) if k % 2 else miner_system(9_000, None))
        for k, key in enumerate(keys[begin : begin + 5], begin)
    ]
    Dao(deployment, SystemClock()).carry_out(admission(deployment, numbers), members, wait=True)
"""
AGENT = """
network = {network}
backend_keys = {keys}
state_dir = "{state}"
seal_s = 10
interval_ms = 1000
[broker]
host = "power.example"
port = 8883
ca = "{state}/ca.crt"
certificate = "{state}/tls.crt"
key = "{state}/tls.key"
[work]
enabled = false
[replay]
trace = "/root/trace.csv"
linger = true
[[channels]]
number = 0
role = "{role}"
sensor = "replay"
"""


class Machine:
    """A Debian root with namespaces of its own, in which commands run one after another and services stay."""

    def __init__(self, root):
        self.root, self.folder = root, root.folder
        script = f"mount -t proc proc {self.folder}/proc && ip link set lo up && exec sleep 100000"
        command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--", "sh", "-c", script]
        self.holder = subprocess.Popen(command)
        time.sleep(0.5)
        children = Path(f"/proc/{self.holder.pid}/task/{self.holder.pid}/children").read_text().split()
        self.inside = ["nsenter", "--target", children[0], "--net", "--mount", "--pid", "chroot", self.folder]

    def run(self, command, *, status=0, network=False):
        """Run a line of the guide in the clone, as somebody with sudo; return what it printed."""
        prefix = self.root.mounted("chroot", self.folder) if network else self.inside
        done = subprocess.run(
            [*prefix, "bash", "-c", f"cd /root/project && {command}"],
            capture_output=True, text=True, timeout=900,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root",
                 "MAXGREEN_PASSWORD_FILE": "/tmp/password", "LANG": "C.UTF-8",
                 **{name: value for name, value in os.environ.items() if name.startswith("PIP_") and "FIND" not in name and network}},
        )  # fmt: skip
        if done.returncode != status:
            text = f"{done.stdout[-3000:]}{done.stderr[-3000:]}"
            raise AssertionError(f"{command}: {done.returncode}\n{text}\n{self.logs()}")
        return done.stdout + done.stderr

    def logs(self):
        logs = sorted((self.folder / "run/units").glob("*.log"))
        return "".join(f"--- {path.name}\n{path.read_text()[-1500:]}" for path in logs)

    def spawn(self, *command):
        return subprocess.Popen([*self.inside, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def path(self, name):
        return self.folder / name.lstrip("/")

    def write(self, name, text, mode=0o644):
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        self.path(name).write_text(text)
        self.path(name).chmod(mode)

    def close(self):
        self.holder.kill()
        self.holder.wait()


@pytest.fixture(params=os.environ.get("MAXGREEN_GUIDE_ROOTS", "debian13").split())
def machine(request, tmp_path, wheels):
    need(ANVIL, "anvil is not installed (make services)")
    root = unpacked(request.param, tmp_path)
    root.copy_project()
    (root.folder / "tmp").chmod(0o1777)
    made = Machine(root)
    wheel = next(path for path in wheels if path.stem.endswith(os.uname().machine))
    shutil.copy(wheel, root.folder / "root")
    made.wheel = f"/root/{wheel.name}"
    made.write("/usr/local/bin/sudo", SUDO, 0o755)
    made.write("/usr/local/bin/systemctl", (ROOT / "tests/deploy/systemctl.py").read_text(), 0o755)
    made.write("/tmp/password", PASSWORD)
    made.write("/root/trace.csv", trace())
    shutil.copy(ANVIL, root.folder / "usr/local/bin/anvil")
    with made.path("/etc/hosts").open("a") as hosts:
        hosts.write("\n127.0.0.1 localhost power.example\n")
    yield made
    made.close()
    root.remove()


def trace():
    rows = [f"2026-01-01T12:00:{k:02d}Z,sun,18.0,{1 + k / 100}" for k in range(60)]
    return "\n".join(["ts_utc,channel,v_bus_V,i_A", *rows]) + "\n"


def commands():
    text = (ROOT / "docs/operator.md").read_text()
    section = text[text.index("## From an empty machine") : text.index("## Settings")]
    found = re.findall(r"^    (\S.*)$", section, re.MULTILINE)
    assert len(found) > 20
    return found


class Operator:
    """Does what stands between the guide's commands."""

    def __init__(self, machine):
        self.machine, self.said, self.devices, self.agents = machine, {}, [], []

    def follow(self, command):
        machine = self.machine
        if command.startswith("sudo nano"):
            self.edit(command.split()[2])
            return
        if "certbot certonly" in command:
            self.certify(command)
            return
        needs_network = "install-backend.sh" in command or "apt-get" in command
        if "install-backend.sh" in command:
            command += f" --from {machine.wheel}"
        if command.startswith("maxgreen chain deploy"):
            command += " --voting-delay-s 1 --voting-period-s 6 --timelock-s 1"
        if "ca sign" in command:
            self.enrol()
        if "maxgreen restore" in command:
            command = self.lose_everything(command)
        if "enable --now" in command:
            machine.run("systemctl start postgresql mosquitto")  # as the packages and the installer do where systemd is
        self.said[command] = machine.run(command, network=needs_network)
        if "wallet new" in command:
            name = command.split()[-1]
            owner = "sudo -u maxgreen " if name == "operator" else ""
            self.fund(machine.run(f"{owner}maxgreen wallet show {name}").strip())
        if "ca sign" in command:
            self.measure()

    def edit(self, name):
        if "wallet-password" in name:
            self.machine.write(name, PASSWORD, 0o600)
            return
        assert "power.example" in self.machine.path(name).read_text()  # the name that is already in the file

    def certify(self, command):
        """What certbot does, which takes these options: it proves the name by a page at port 80, and leaves two files."""
        machine = self.machine
        assert "certbot" in machine.run("certbot --version")
        known = machine.run("certbot --help all")
        assert all(option in known for option in re.findall(r"--[a-z-]+", command))
        machine.run("systemctl start nginx")
        machine.write("/var/www/html/.well-known/acme-challenge/token", "proof")
        fetched = "curl --silent --fail http://power.example/.well-known/acme-challenge/token"
        assert machine.run(fetched) == "proof"
        self.challenge = fetched
        for source, name in (("server.crt", "fullchain.pem"), ("server.key", "privkey.pem")):
            text = machine.path(f"/etc/mosquitto/maxgreen/certs/{source}").read_text()
            machine.write(f"/etc/letsencrypt/live/power.example/{name}", text)

    def fund(self, address):
        self.machine.run(f"python3 /root/fund.py {address}")

    def enrol(self):
        """Ten devices make their keys; their owner applies, the DAO admits."""
        machine = self.machine
        known = next(text for command, text in self.said.items() if "ingest identity" in command)
        network, keys = re.findall(r"= (.+)", known)
        for number in range(10):
            state = f"/root/devices/{number}"
            role = "received" if number % 2 else "generation"
            machine.write(f"{state}.toml", AGENT.format(network=network, keys=keys, state=state, role=role))
            machine.run(f"maxgreen agent init --config {state}.toml")
            self.devices.append(state)
            (machine.path("/tmp/requests")).mkdir(exist_ok=True)
            shutil.copy(machine.path(f"{state}/tls.csr"), machine.path(f"/tmp/requests/{number}.csr"))
            machine.path(f"/tmp/requests/{number}.csr").chmod(0o644)
        assert "is not registered" in machine.run(
            "sudo -u maxgreen maxgreen ca sign /tmp/requests/0.csr --ledger /etc/maxgreen/ingest.toml --out /tmp/x",
            status=2,
        )
        machine.write("/root/admit.py", ADMIT)
        machine.run(f"/opt/maxgreen/bin/python /root/admit.py {' '.join(self.devices)}")
        deadline = time.monotonic() + 120
        while "registered" in machine.run("sudo -u maxgreen maxgreen ca sign /tmp/requests/9.csr --ledger "
                                          "/etc/maxgreen/ingest.toml --out /tmp/y; true"):  # fmt: skip
            assert time.monotonic() < deadline, "the ledger did not learn of the devices"
            time.sleep(2)

    def measure(self):
        """Each device gets its certificate; two of them run until the ledger has batches of both."""
        machine = self.machine
        for number, state in enumerate(self.devices):
            request = machine.run(f"openssl req -in {state}/tls.csr -noout -subject")
            name = re.search(r"[0-9a-f]{32}", request)[0]
            shutil.copy(machine.path(f"/var/lib/maxgreen/signed/{name}.crt"), machine.path(f"{state}/tls.crt"))
            shutil.copy(machine.path("/var/lib/maxgreen/signed/ca.crt"), machine.path(f"{state}/ca.crt"))
            assert "ok" in machine.run(f"maxgreen agent config check --config {state}.toml")
            if number < 2:
                run = f"exec maxgreen agent run --config {state}.toml >/run/units/agent-{number}.log 2>&1"
                self.agents.append(machine.spawn("sh", "-c", run))
        deadline = time.monotonic() + 180
        while not re.search(
            r"devices, [1-9]\d* batches", said := machine.run("sudo -u maxgreen maxgreen ingest check")
        ):
            assert time.monotonic() < deadline, said + machine.logs()
            time.sleep(3)

    def lose_everything(self, command):
        """What a lost disk takes; then the backup's own name."""
        machine = self.machine
        for agent in self.agents:
            agent.terminate()
        newest = max(path.name for path in machine.path("/var/backups/maxgreen").glob("*Z"))
        self.kept = json.loads((machine.path(f"/var/backups/maxgreen/{newest}/manifest.json")).read_text())
        self.key = machine.path("/var/lib/maxgreen/backend.pem").read_bytes()
        machine.run(
            "runuser -u postgres -- dropdb --force maxgreen && runuser -u postgres -- createdb -O maxgreen maxgreen"
        )
        for name in ("/var/lib/maxgreen/backend.pem", "/etc/maxgreen/deployment.json", "/var/lib/maxgreen/ca/ca.key"):
            machine.path(name).unlink()
        return re.sub(r"/\d{4}-\S+Z", f"/{newest}", command)


FUND = """
import json, sys, urllib.request
body = {"jsonrpc": "2.0", "id": 1, "method": "anvil_setBalance", "params": [sys.argv[1], hex(10**20)]}
urllib.request.urlopen(urllib.request.Request(
    "http://127.0.0.1:8545", json.dumps(body).encode(), {"Content-Type": "application/json"}))
"""


def test_the_guide_works_as_printed(machine):
    operator = Operator(machine)
    machine.write("/root/fund.py", FUND)
    machine.run(
        "apt-get update -qq && apt-get install --yes --no-install-recommends nginx certbot openssl curl >/dev/null",
        network=True,
    )
    chain = machine.spawn("anvil", "--port", "8545", "--block-time", "1", "--silent")
    try:
        for command in commands():
            operator.follow(command)
    finally:
        chain.kill()
    said = operator.said
    assert "postgresql" in said[next(c for c in said if "--dry-run" in c)]
    doctor = next(text for command, text in said.items() if "maxgreen doctor" in command)
    assert "WRONG" not in doctor, doctor
    assert next(text for c, text in said.items() if "ca list" in c).count("valid") >= 10
    restored = next(text for command, text in said.items() if "maxgreen restore" in command)
    assert f"{operator.kept['ledger']['batches']} batches" in restored
    assert machine.path("/var/lib/maxgreen/backend.pem").read_bytes() == operator.key
    stat = machine.path("/var/lib/maxgreen/backend.pem").stat()
    assert stat.st_mode & 0o777 == 0o600
    assert stat.st_uid == machine.path("/var/lib/maxgreen").stat().st_uid
    machine.run("sudo systemctl start maxgreen-ingest maxgreen-dapp")
    assert "whole" in machine.run("sudo -u maxgreen maxgreen ingest check")
    page = machine.run("curl --silent --cacert /var/lib/maxgreen/certs/ca.crt https://power.example/health/ready --retry 30 "
                       "--retry-all-errors --retry-delay 1 --fail; true")  # fmt: skip
    assert "ok" in page
    assert machine.run(operator.challenge) == "proof"  # so certbot can renew
    machine.run("deploy/install-backend.sh --uninstall")
    assert machine.path("/var/lib/maxgreen/backend.pem").exists()
    assert not machine.path("/opt/maxgreen").exists()
