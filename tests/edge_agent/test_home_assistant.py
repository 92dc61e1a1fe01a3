"""The real Home Assistant, from PyPI, in an environment of its own: it shows what is, and forgets what is not."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from edge_agent.homeassistant import discovery, discovery_topic
from edge_agent.report import Alarm, ChannelReport, Report
from maxgreen.protocol.identity import device_topic
from simulator.lab import Lab
from tests.conftest import ROOT
from tests.deploy.roots import unpacked
from tests.services import CACHE

pytestmark = pytest.mark.services
PACKAGE = "pytest-homeassistant-custom-component==0.13.316"  # Home Assistant 2026.2.3
NEWEST = ("python3.14", "python3.13")


def report(power, alarms=(), cpu_c=48.2):
    channels = {
        number: ChannelReport(role, watts, 4_500_000.0, 0.0)
        for number, (role, watts) in enumerate(zip(("generation", "sent"), power))
    }
    return Report(
        time="", boot_ms=0, device="", channels=channels, seq=10, waiting=0, stalled=0, spool_bytes=0, receipt=None,
        connected=True, synchronised=True, cpu_c=cpu_c, mining="on", mining_paused=False, interval_ms=1_000,
        transfer=None, proof_windows={}, alarms=alarms,
    ).to_home_assistant()  # fmt: skip


def messages():
    lab = Lab()
    state, status = device_topic(lab.device, "state"), device_topic(lab.device, "status")
    sensor = Alarm("sensor", "channel 0 has given no reading for 2 minutes; check the wiring")
    return {
        "introduction": [[discovery_topic(lab.device), discovery(lab.device, lab.birth)]],
        "readings": [[status, {"status": "online", "boot": "00"}], [state, report((18.0, 17.5))]],
        "lost channel": [[state, report((None, 17.0), (sensor,), cpu_c=None)]],
        "gone": [[status, {"status": "offline", "boot": "00"}]],
        "back": [[status, {"status": "online", "boot": "01"}], [state, report((18.0, 17.5))]],
    }


def _runs(program):
    """Tell whether a Python is there, and not only a name for one that is not."""
    return (
        program
        and subprocess.run(
            [program, "-c", "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 13, 2))"], capture_output=True
        ).returncode
        == 0
    )


@pytest.fixture
def environment(tmp_path):
    """Return how to run Home Assistant's pytest on a folder: on this machine's Python, else in a Debian 13 root."""
    program = next(filter(_runs, map(shutil.which, NEWEST)), None)
    if program is not None:
        folder = CACHE / "home-assistant"
        if not (folder / "ready").exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([program, "-m", "venv", folder], check=True)
            subprocess.run([folder / "bin/pip", "install", "--quiet", PACKAGE, "paho-mqtt"], check=True)
            (folder / "ready").touch()
        yield (
            tmp_path,
            lambda *command, **env: subprocess.run(
                [folder / "bin/python", *command], env={"PATH": "/usr/bin:/bin", **env}, capture_output=True, text=True
            ),
        )
        return
    root = unpacked("debian13", tmp_path)  # skips with its reason where there is none
    try:
        root.run("python3", "-m", "venv", "/opt/ha")
        root.run("/opt/ha/bin/pip", "install", "--quiet", PACKAGE, "paho-mqtt")

        def run(*command, **env):
            return subprocess.run(
                root.mounted(
                    "chroot", root.folder, "/opt/ha/bin/python", *(c.replace(str(root.folder), "") for c in command)
                ),
                env={"PATH": "/usr/sbin:/usr/bin:/bin", **{k: v.replace(str(root.folder), "") for k, v in env.items()}},
                capture_output=True, text=True,
            )  # fmt: skip

        yield root.folder / "tmp", run
    finally:
        root.remove()


def test_home_assistant_shows_what_is_and_forgets_what_is_not(environment):
    folder, python = environment
    work = Path(folder) / "check"
    work.mkdir()
    (work / "messages.json").write_text(json.dumps(messages()))
    shutil.copy(ROOT / "tests/edge_agent/home_assistant_check.py", work / "test_check.py")
    done = python(
        "-m", "pytest", "-q", "-o", "asyncio_mode=auto", "-p", "no:cacheprovider", str(work / "test_check.py"),
        MAXGREEN_MESSAGES=str(work / "messages.json"), HOME=str(work),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "1 passed" in done.stdout
