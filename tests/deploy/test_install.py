"""The installer, in a Debian root folder of its own: repeatable, and an uninstall keeps keys and settings."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, need

pytestmark = pytest.mark.services
INSTALL = ROOT / "deploy/install-agent.sh"
MAXGREEN = "/opt/maxgreen/bin/maxgreen"


@pytest.fixture(scope="module")
def debian(tmp_path_factory):
    """A fresh Debian 12, and a wheel of this repository."""
    program = need(shutil.which("debootstrap"), "debootstrap is not installed (apt-get install debootstrap)")
    if os.getuid() != 0:
        pytest.skip("debootstrap and chroot need root")
    root, wheels = tmp_path_factory.mktemp("debian") / "root", tmp_path_factory.mktemp("wheels")
    for attempt in range(3):
        done = subprocess.run(
            [program, "--variant=minbase", "--include=ca-certificates", "bookworm", root],
            capture_output=True,
            text=True,
        )
        if done.returncode == 0:
            break
        shutil.rmtree(root, ignore_errors=True)
        assert attempt < 2, done.stdout[-2000:]
    for name in ("resolv.conf", "hosts", "ssl/certs/ca-certificates.crt"):
        shutil.copy(Path("/etc") / name, root / "etc" / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", wheels, ROOT],
        check=True,
        capture_output=True,
    )
    return root, next(wheels.iterdir())


def install(debian, *arguments):
    root, wheel = debian
    environment = {name: value for name, value in os.environ.items() if name != "PIP_FIND_LINKS"}
    done = subprocess.run(
        [INSTALL, "--root", root, "--from", wheel, *arguments], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def inside(debian, *command, user="maxgreen-agent", status=0):
    done = subprocess.run(
        ["chroot", f"--userspec={user}:{user}", debian[0], *command],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/sbin:/usr/bin:/bin"},
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_an_agent_is_installed_upgraded_and_taken_away_and_its_keys_stay(debian):
    root = debian[0]
    assert "would" not in install(debian, "--dry-run")
    assert not (root / "opt/maxgreen").exists()
    install(debian)
    assert inside(debian, MAXGREEN, "--version").startswith("maxgreen ")
    groups = inside(debian, "id", "-nG").split()
    assert {"i2c", "gpio"} <= set((root / "etc/group").read_text().replace(":", " ").split())
    assert "maxgreen-agent" in groups
    assert (root / "etc/systemd/system/maxgreen-agent.service").exists()
    state = root / "var/lib/maxgreen-agent"
    assert state.stat().st_mode & 0o777 == 0o700
    device = inside(debian, MAXGREEN, "agent", "init")
    assert "device id" in device
    key = (state / "signing.pem").read_bytes()
    assert (state / "signing.pem").stat().st_mode & 0o777 == 0o600
    wrong = inside(debian, MAXGREEN, "agent", "config", "check", status=78)
    assert "network" in wrong
    settings = (root / "etc/maxgreen/agent.toml").read_text()
    settings = settings.replace('network = ""', 'network = "eip155:1:0x' + "0" * 40 + '"').replace(
        'backend_keys = [""]', "backend_keys = []"
    )
    (root / "etc/maxgreen/agent.toml").write_text(settings)
    assert "ok" in inside(debian, MAXGREEN, "agent", "config", "check")

    install(debian)  # an upgrade
    assert (root / "etc/maxgreen/agent.toml").read_text() == settings
    assert (state / "signing.pem").read_bytes() == key

    install(debian, "--uninstall")
    assert not (root / "opt/maxgreen").exists()
    assert not (root / "etc/systemd/system/maxgreen-agent.service").exists()
    assert (state / "signing.pem").read_bytes() == key
    assert (root / "etc/maxgreen/agent.toml").exists()


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
    done = subprocess.run(
        [program, "security", "--offline=true", "--threshold=20", str(unit)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-500:]
