"""The commands of `maxgreen agent`, as an owner runs them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edge_agent.cli import app
from edge_agent.identity import Identities
from edge_agent.keystore import KeySettings
from edge_agent.sensors.trace import read_trace
from maxgreen.errors import UsageError
from simulator.lab import NETWORK
from tests.edge_agent.test_agent import BACKEND
from tests.fakes.ina219_bus import Ina219Bus
from tests.fakes.ina228_bus import Ina228Bus

MAXGREEN = Path(sys.executable).parent / "maxgreen"
SETTINGS = """
network = "{network}"
backend_keys = ["{backend}"]
state_dir = "{folder}/state"
metrics_port = 0
interval_ms = 100
[broker]
port = 1
[work]
enabled = false
[[channels]]
number = 0
role = "generation"
[[channels]]
number = 1
role = "sent"
sensor = "ina228"
bus = 3
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "agent.toml"
    path.write_text(SETTINGS.format(network=NETWORK, backend=BACKEND.spki.hex(), folder=tmp_path))
    Identities(tmp_path / "state", KeySettings()).make()
    return path


@pytest.fixture
def buses(monkeypatch):
    import edge_agent.sensors.bus as bus_module

    found = {1: Ina219Bus(current=0.1), 3: Ina228Bus()}
    monkeypatch.setattr(bus_module, "_open", found.__getitem__)
    return found


def run(*arguments, **options):
    done = CliRunner().invoke(app, list(map(str, arguments)), **options)
    assert done.exit_code == 0, done.exception
    return done


def test_sensors_shows_what_answers_and_what_does_not(config, buses):
    buses[3].present = False
    found = json.loads(run("sensors", "--config", config, "--json").stdout)
    assert found["buses"] == {"1": ["0x40"], "3": []}
    assert found["channels"]["0"]["voltage_v"] == 18.0
    assert "check wiring" in found["channels"]["1"]["error"]
    assert "18.000 V" in run("sensors", "--config", config).stdout


def test_sensors_says_of_a_bus_that_is_not_there_how_to_get_it(config):
    found = json.loads(run("sensors", "--config", config, "--json").stdout)
    assert "raspi-config" in found["buses"]["1"]
    assert "raspi-config" in found["channels"]["0"]["error"]


def test_calibrate_compares_two_points_and_prints_the_channels_lines(config, buses, monkeypatch):
    import typer

    def at(text, **_options):
        buses[1].current = 0.098 if "0.1" in text else 1.97

    monkeypatch.setattr(typer, "prompt", at)
    arguments = [
        "calibrate",
        "--channel",
        0,
        "--reference",
        0.1,
        "--reference",
        2.0,
        "--readings",
        3,
        "--config",
        config,
    ]
    found = json.loads(run(*arguments, "--json").stdout)
    assert abs(found["gain_ppm"] - 14_957) < 10
    assert abs(found["offset_ua"] - 534) < 10
    text = run(*arguments).stdout
    assert f'calibration = "{found["calibration"]}"' in text
    wrong = CliRunner().invoke(app, ["calibrate", "--channel", "7", "--reference", "1", "--config", str(config)])
    assert "channel 7" in str(wrong.exception)


def test_a_trace_may_be_json_lines(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text(
        '{"ts_utc": "2026-01-01T00:00:00Z", "channel": "a", "v_bus_V": 18.004, "i_A": 1.5}\n'
        '{"ts_utc": "2026-01-01T00:00:01Z", "channel": "a", "v_bus_V": "18", "i_A": -0.25}\n'
    )
    points = read_trace(path).channel("a")
    assert [(p.reading.voltage_uv, p.reading.current_ua) for p in points] == [
        (18_004_000, 1_500_000),
        (18_000_000, -250_000),
    ]
    for line in ("[1]", "{", '{"channel": "a"}', '{"ts_utc": 1, "channel": {}, "v_bus_V": 1, "i_A": 1}', "NaN"):
        path.write_text(line + "\n")
        with pytest.raises(UsageError, match="line 1"):
            read_trace(path)


def test_the_service_is_ready_without_sensors_after_a_while_and_stops_in_two_seconds(config, tmp_path):
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(address)
        told.settimeout(60)
        (tmp_path / "run").mkdir()
        environment = {**os.environ, "NOTIFY_SOCKET": address, "RUNTIME_DIRECTORY": str(tmp_path / "run")}
        log = (tmp_path / "log").open("w")
        process = subprocess.Popen(
            [MAXGREEN, "agent", "run", "--config", config], stderr=log, stdout=log, env=environment
        )
        try:
            assert told.recv(100) == b"READY=1"
            status = json.loads((tmp_path / "run/status.json").read_text())
            assert status["channels"]["0"]["power_w"] is None
        finally:
            begin = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
    assert time.monotonic() - begin < 2
    assert not (tmp_path / "run/status.json").exists()
    said = (tmp_path / "log").read_text()
    assert said.count("channel 0 lost") == said.count("channel 1 lost") == 1
    assert "Traceback" not in said


WRONG = [
    (("[broker]", "[broker]\nwindow = 0"), "broker.window"),
    (("port = 1", "port = 99999"), "broker.port"),
    (('role = "sent"', 'role = "lent"'), "channels.1.role"),
    (("interval_ms = 100", "interval_ms = 100\nunknown = 1"), "unknown"),
    (("[broker]", "seal_s = 7\n[broker]"), "seal_s: 7 does not divide 600"),
    (("number = 1", "number = 0"), "distinct"),
    ((BACKEND.spki.hex(), "00"), "backend_keys.0: not a P-256 public key of 182 hex digits"),
    ((BACKEND.spki.hex(), "zz"), "backend_keys.0"),
    ((BACKEND.spki.hex(), BACKEND.spki.hex()[:-2] + "00"), "backend_keys.0"),
    (("[broker]", '[broker]\nca = "/nowhere.pem"'), "broker.ca = /nowhere.pem: No such file"),
    (("[broker]", '[broker]\nca = "/"'), "broker.ca = /: Is a directory"),
    (("[work]", "[board]\nrelay_pin = 17\nled_pin = 17\n[work]"), "different pins"),
    (("[work]", "[board]\nrelay_pin = 17\nrelay_active_low = true\n[work]"), "pulled down"),
    (("[work]", "[board]\nrelay_pin = 17\nrelay_channel = 9\n[work]"), "9 is not one of the channels"),
    (('sensor = "ina228"\nbus = 3', ""), "same bus and address"),
    (('sensor = "ina228"', 'sensor = "replay"'), "do not mix"),
    (("network = ", 'network = "x"\n#'), "network"),
]


@pytest.mark.parametrize(("change", "word"), WRONG)
@pytest.mark.parametrize("command", ["config check", "run"])
def test_a_wrong_setting_is_one_sentence_and_status_78_for_check_and_run_alike(config, change, word, command):
    assert change[0] in config.read_text()
    config.write_text(config.read_text().replace(*change))
    done = subprocess.run(
        [MAXGREEN, "agent", *command.split(), "--config", config], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 78, done.stderr
    assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_check_finds_all_mistakes_at_once(config):
    text = config.read_text().replace("port = 1", "port = 99999").replace('role = "sent"', 'role = "lent"')
    config.write_text(text + "\nwrong = 1\n")
    done = subprocess.run([MAXGREEN, "agent", "config", "check", "-c", config], capture_output=True, text=True)
    assert done.returncode == 78
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"maxgreen: settings {config}: ") for line in lines)


def test_a_path_that_may_be_left_out_may_be_empty(config):
    text = config.read_text().replace("[broker]", '[broker]\nca = ""\ncertificate = ""\nkey = ""')
    config.write_text(text + '\n[replay]\ntrace = ""\n')
    assert "ok" in run("config", "check", "--config", config).stdout


def test_a_key_that_was_not_made_and_a_machine_without_pins_are_said(config, tmp_path):
    (tmp_path / "state/signing.pem").unlink()
    done = subprocess.run([MAXGREEN, "agent", "config", "check", "-c", config], capture_output=True, text=True)
    assert "'maxgreen agent init' makes it" in done.stderr
    Identities(tmp_path / "other", KeySettings()).make()
    config.write_text(config.read_text().replace("/state", "/other") + "[board]\nrelay_pin = 17\n")
    done = subprocess.run([MAXGREEN, "agent", "run", "--config", config], capture_output=True, text=True, timeout=60)
    assert done.returncode == 78
    assert "GPIO" in done.stderr
