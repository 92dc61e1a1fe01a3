"""The installer on Debian 12 and 13, and by `make pi` on a 64-bit Pi's (emulated): repeatable, with a way back."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, need
from tests.deploy.roots import NAMES, unpacked
from tests.edge_agent.test_agent import BACKEND

pytestmark = pytest.mark.services
INSTALL = ROOT / "deploy/install-agent.sh"
MAXGREEN = "/opt/maxgreen/bin/maxgreen"
EMULATED = """
import sys
sys.path.insert(0, "/tmp/emulated")
import edge_agent.sensors.bus as bus
from ina219_bus import Ina219Bus
bus._open = lambda number: Ina219Bus(current=1.0)
from maxgreen.cli import main
main()
"""


@pytest.fixture(scope="module", params=NAMES)
def debian(request, tmp_path_factory, wheels):
    """A fresh root, and the wheel for its machine."""
    root = unpacked(request.param, tmp_path_factory.mktemp("debian"))
    machine = "aarch64" if request.param.endswith("arm64") else os.uname().machine
    root.wheel = next(path for path in wheels if path.stem.endswith(machine))
    root.name = request.param
    yield root
    root.remove()


def install(root, *arguments, status=0, wheel=None):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_FIND")}
    environment["PIP_NO_COMPILE"] = (
        "1"  # bytecode is made at the first import; an emulated machine takes minutes for it
    )
    done = subprocess.run(
        root.mounted(INSTALL, "--root", root.folder, "--from", wheel or root.wheel, *arguments),
        capture_output=True, text=True, env=environment, timeout=2_400,
    )  # fmt: skip
    assert done.returncode == status, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def agent(root, *arguments, status=0, program=MAXGREEN):
    return root.run(*program.split(), "agent", *arguments, user="maxgreen-agent", status=status)


@pytest.mark.timeout(2_400)  # the emulated one
def test_an_agent_is_installed_runs_is_upgraded_goes_back_and_its_keys_stay(debian, tmp_path):
    root = debian.folder
    assert "would" not in install(debian, "--dry-run")
    assert not (root / "opt/maxgreen").exists()
    install(debian)
    assert debian.run(MAXGREEN, "--version").startswith("maxgreen ")
    assert {"i2c", "gpio"} <= set((root / "etc/group").read_text().replace(":", " ").split())
    assert "maxgreen-agent" in debian.run("id", "-nG", "maxgreen-agent").split()
    assert (root / "etc/systemd/system/maxgreen-agent.service").exists()
    assert "RuntimeWatchdogSec=15s" in (root / "etc/systemd/system.conf.d/maxgreen-watchdog.conf").read_text()
    installed = debian.run("/opt/maxgreen/bin/pip", "freeze")
    for line in (ROOT / "constraints.txt").read_text().splitlines():  # pinned, all of it
        name, _, version = line.partition(";")[0].strip().partition("==")
        for found in installed.splitlines():
            if found.lower().replace("_", "-").startswith(f"{name.lower()}=="):
                assert found.partition("==")[2] == version
    assert "lgpio==" in installed
    debian.run("/opt/maxgreen/bin/python", "-c", "import lgpio, gpiod, RPi")
    state = root / "var/lib/maxgreen-agent"
    assert state.stat().st_mode & 0o777 == 0o700
    assert "device id" in agent(debian, "init")
    key = (state / "signing.pem").read_bytes()
    assert (state / "signing.pem").stat().st_mode & 0o777 == 0o600
    assert "network" in agent(debian, "config", "check", status=78)
    settings = root / "etc/maxgreen/agent.toml"
    text = settings.read_text()
    text = text.replace('network = ""', 'network = "eip155:1:0x' + "0" * 40 + '"').replace(
        'backend_keys = [""]', f'backend_keys = ["{BACKEND.spki.hex()}"]'
    )
    settings.write_text(text)
    assert "ok" in agent(debian, "config", "check")

    selftest = debian.run(MAXGREEN, "selftest", "scrypt")
    assert "neon" in selftest or not debian.name.endswith("arm64")
    run_on_emulated_sensors(debian)

    if not debian.name.endswith("arm64"):  # an emulated machine takes minutes for each
        upgrade_and_go_back(debian, tmp_path)
    assert settings.read_text() == text
    assert (state / "signing.pem").read_bytes() == key

    install(debian, "--uninstall")
    assert not (root / "opt/maxgreen").exists()
    assert not (root / "opt/maxgreen-releases").exists()
    assert not (root / "etc/systemd/system/maxgreen-agent.service").exists()
    assert (state / "signing.pem").read_bytes() == key
    assert settings.exists()


def upgrade_and_go_back(debian, folder):
    root = debian.folder
    install(debian)
    assert (root / "opt/maxgreen").readlink() == Path("/opt/maxgreen-releases/0002")
    if debian.name == "debian13":  # once is enough
        refuse_a_version_that_cannot_read_the_settings(debian, folder)
    install(debian, "--rollback")
    assert (root / "opt/maxgreen").readlink() == Path("/opt/maxgreen-releases/0001")
    assert debian.run(MAXGREEN, "--version").startswith("maxgreen ")
    assert "no version before" in install(debian, "--rollback", status=1)


def run_on_emulated_sensors(debian):
    """Let the installed agent measure an INA219's registers; see its status, its batches, and its end."""
    folder = debian.folder / "tmp/emulated"
    folder.mkdir()
    folder.chmod(0o755)
    shutil.copy(ROOT / "tests/fakes/ina219_bus.py", folder)
    (folder / "run.py").write_text(EMULATED)
    script = """
set -e
cd /tmp
/opt/maxgreen/bin/python /tmp/emulated/run.py agent sensors --json --config /etc/maxgreen/agent.toml
/opt/maxgreen/bin/python /tmp/emulated/run.py agent run --config /etc/maxgreen/agent.toml 2>/tmp/agent.log &
agent=$!
for k in $(seq 120); do
  sleep 1
  /opt/maxgreen/bin/maxgreen agent status --json >/tmp/status.json 2>/tmp/status.err || continue
  grep -q '"power_w": 18' /tmp/status.json && break
done
cat /tmp/status.json
kill $agent
wait $agent
"""
    said = debian.run("sh", "-c", script, user="maxgreen-agent", timeout=600)
    sensors, status = (json.loads(line) for line in said.splitlines() if line.startswith("{"))
    assert sensors["channels"]["0"]["current_a"] == 1.0
    assert status["channels"]["0"]["power_w"] == 18.0
    assert "Traceback" not in (debian.folder / "tmp/agent.log").read_text()


def refuse_a_version_that_cannot_read_the_settings(debian, folder):
    broken, wheel = folder / "maxgreen", folder / debian.wheel.name
    subprocess.run([sys.executable, "-m", "zipfile", "-e", debian.wheel, broken], check=True)
    config = broken / "edge_agent/config.py"
    config.write_text(config.read_text().replace("    network: NetworkName", "    network_name: NetworkName"))
    subprocess.run([sys.executable, "-m", "zipfile", "-c", wheel, *broken.iterdir()], check=True)
    used = (debian.folder / "opt/maxgreen").readlink()
    assert "the old one stays in use" in install(debian, status=1, wheel=wheel)
    assert (debian.folder / "opt/maxgreen").readlink() == used
    assert max((debian.folder / "opt/maxgreen-releases").iterdir()).name == used.name


@pytest.mark.parametrize("machine", ["armhf", "armel", "i386"])
def test_a_machine_of_32_bits_is_refused_with_a_sentence(tmp_path, machine):
    dpkg = tmp_path / "dpkg"
    dpkg.write_text(f"#!/bin/sh\necho {machine}\n")
    dpkg.chmod(0o755)
    done = subprocess.run(
        [INSTALL, "--dry-run"], capture_output=True, text=True, env={**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin"}
    )
    assert done.returncode == 1
    assert f"{machine} is not supported" in done.stderr
    assert "64-bit image" in done.stderr


def test_an_unknown_option_prints_the_usage():
    done = subprocess.run([INSTALL, "--wrong"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--dry-run" in done.stderr


def test_the_unit_allows_what_the_agent_asks_of_the_kernel_and_little_else():
    program = need(shutil.which("systemd-analyze"), "systemd-analyze is not installed (apt-get install systemd)")
    unit = ROOT / "deploy/systemd/maxgreen-agent.service"
    text = unit.read_text()
    assert "SystemCallFilter=adjtimex clock_adjtime clock_adjtime64 sched_setscheduler setpriority\n" in text
    assert "RestartPreventExitStatus=78" in text
    assert "TimeoutStartSec=300" in text
    assert "RuntimeDirectoryPreserve=yes" in text
    done = subprocess.run(
        [program, "security", "--offline=true", "--threshold=20", str(unit)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-500:]
