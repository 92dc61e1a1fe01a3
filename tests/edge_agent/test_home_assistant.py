"""The real Home Assistant, from PyPI, in an environment of its own: it shows what is, and forgets what is not."""

import json
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from edge_agent.homeassistant import discovery, discovery_topic
from edge_agent.report import Alarm, ChannelReport, Report
from maxgreen.protocol.identity import device_topic
from simulator.lab import Lab
from tests.conftest import ROOT
from tests.deploy.brokers import real_broker
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


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Return how to run Home Assistant's pytest on a folder: on this machine's Python, else in a Debian 13 root."""
    tmp_path = tmp_path_factory.mktemp("home-assistant")
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


def check(environment, name, variable, given):
    """Run a file of checks inside Home Assistant's test environment, with what is given as JSON."""
    folder, python = environment
    work = Path(folder) / name
    work.mkdir()
    (work / "given.json").write_text(json.dumps(given))
    shutil.copy(ROOT / f"tests/edge_agent/{name}.py", work / "test_check.py")
    done = python(
        "-m", "pytest", "-q", "-o", "asyncio_mode=auto", "-p", "no:cacheprovider", str(work / "test_check.py"),
        HOME=str(work), **{variable: str(work / "given.json")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "1 passed" in done.stdout


def test_home_assistant_shows_what_is_and_forgets_what_is_not(environment):
    check(environment, "home_assistant_check", "MAXGREEN_MESSAGES", messages())


def test_home_assistant_reads_a_device_at_the_real_broker(environment, mosquitto_program):
    lab = Lab()
    name = lab.device.hex()
    say = messages()
    with real_broker(mosquitto_program, [name]) as broker:
        certs = broker.folder / "maxgreen/certs"
        settings = {
            "broker": "127.0.0.1", "port": broker.devices, "protocol": "5", "discovery": True,
            "certificate": (certs / "ca.crt").read_text(), "client_cert": (certs / "homeassistant.crt").read_text(),
            "client_key": (certs / "homeassistant.key").read_text(),
        }  # fmt: skip
        device = broker.client(name)
        for topic, payload in say["introduction"] + say["readings"]:
            assert device.publish(topic, json.dumps(payload), retain=True) in {0, 16}  # 16: nobody listens yet
        ended = threading.Event()

        def measure():  # other states, once it is there
            while not ended.wait(1):
                if "'homeassistant/status'" in (broker.folder / "log").read_text():  # its birth message
                    device.publish(device_topic(lab.device, "state"), json.dumps(report((17.0, 16.0))))

        measuring = threading.Thread(target=measure)
        measuring.start()
        try:
            check(environment, "home_assistant_broker_check", "MAXGREEN_BROKER", {"settings": settings})
        finally:
            ended.set()
            measuring.join()
        device.leave()
