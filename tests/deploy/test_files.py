"""The files that an operator copies: a real Mosquitto starts with them, systemd and Grafana accept them."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
import yaml
from paho.mqtt.enums import CallbackAPIVersion

from edge_agent.homeassistant import discovery_topic
from maxgreen.protocol.identity import BEACON_TOPIC, device_topic
from simulator.lab import Lab
from tests.conftest import ROOT, free_port, need, stop, wait_for

pytestmark = pytest.mark.services
PROGRAM = Path(sys.executable).parent / "maxgreen"
DEVICE, OTHER = Lab().device, Lab(secret=2).device


@pytest.fixture
def broker(tmp_path, mosquitto_program):
    """Mosquitto with our configuration, paths and port changed: (port, certificates)."""
    need(shutil.which("openssl"), "openssl is not installed (apt-get install openssl)")
    certificates, port = tmp_path / "certs", free_port()
    subprocess.run(
        [ROOT / "broker_config/make-certs", certificates, "127.0.0.1", "ingest", DEVICE.hex(), OTHER.hex()],
        check=True,
        capture_output=True,
    )
    shutil.copy(ROOT / "broker_config/acl", tmp_path / "acl")
    (tmp_path / "acl").chmod(0o600)
    text = (ROOT / "broker_config/mosquitto.conf").read_text()
    text = text.replace("/etc/mosquitto/maxgreen", str(tmp_path)).replace("/var/lib/mosquitto/", f"{tmp_path}/")
    text = text.replace("listener 8883", f"listener {port} 127.0.0.1").replace(
        "listener 8884", f"listener {free_port()}"
    )
    text += "\nuser root\n"
    (tmp_path / "mosquitto.conf").write_text(text)
    process = subprocess.Popen(
        [mosquitto_program, "-c", tmp_path / "mosquitto.conf"], stderr=(tmp_path / "log").open("w")
    )
    try:
        wait_for(lambda: "running" in (tmp_path / "log").read_text(), what="mosquitto")
        yield port, certificates
    finally:
        stop(process)


def client(broker, name, topics=()):
    port, certificates = broker
    found = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name or "nobody", protocol=mqtt.MQTTv5)
    found.messages, found.state = [], {}
    found.on_message = lambda _c, _d, m: found.messages.append((m.topic, m.payload))

    def on_connect(_client, _data, _flags, code, _properties):
        found.state["code"] = code
        for topic in topics:  # a refused publish ends the connection, and paho makes another
            found.subscribe(topic, 1)

    found.on_connect = on_connect
    found.on_publish = lambda _c, _d, mid, code, _p: found.state.update({mid: code})
    files = {"certfile": certificates / f"{name}.crt", "keyfile": certificates / f"{name}.key"} if name else {}
    found.tls_set(ca_certs=str(certificates / "ca.crt"), **{k: str(v) for k, v in files.items()})
    try:
        found.connect("127.0.0.1", port)
    except OSError as error:
        found.state["code"] = error
        return found
    found.loop_start()
    return found


@pytest.mark.rule("P-ID-4")
def test_a_device_writes_only_its_own_topics_and_nobody_is_anonymous(broker):
    ingest = client(broker, "ingest", ["mg/v1/+/+/batch"])
    device = client(broker, DEVICE.hex(), [BEACON_TOPIC])
    wait_for(lambda: "code" in ingest.state and "code" in device.state)
    time.sleep(0.3)
    for topic in (device_topic(OTHER, "batch"), device_topic(DEVICE, "receipt"), BEACON_TOPIC):
        info = device.publish(topic, b"forged", qos=1)
        code = wait_for(lambda info=info: device.state.get(info.mid), what="the refusal")
        assert code.is_failure, topic
    info = device.publish(discovery_topic(OTHER), b"forged", qos=1)
    assert wait_for(lambda info=info: device.state.get(info.mid), what="the refusal").is_failure
    info = device.publish(discovery_topic(DEVICE), b"{}", qos=1)
    assert not wait_for(lambda info=info: device.state.get(info.mid), what="the answer").is_failure
    info = device.publish(device_topic(DEVICE, "batch"), b"honest", qos=1)
    wait_for(lambda: ingest.messages, what="the honest batch")
    assert ingest.messages == [(device_topic(DEVICE, "batch"), b"honest")]
    ingest.publish(BEACON_TOPIC, b"beacon", qos=1, retain=True)
    wait_for(lambda: (BEACON_TOPIC, b"beacon") in device.messages, what="the beacon")
    anonymous = client(broker, None)
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline and "code" not in anonymous.state:
        time.sleep(0.05)
    code = anonymous.state.get("code")
    assert code is None or isinstance(code, OSError) or code.is_failure
    assert not anonymous.is_connected()
    for one in (ingest, device, anonymous):
        one.disconnect()
        one.loop_stop()


def test_systemd_finds_nothing_to_say_about_the_units(tmp_path):
    program = need(shutil.which("systemd-analyze"), "systemd-analyze is not installed (apt-get install systemd)")
    for path in sorted((ROOT / "deploy/systemd").iterdir()):
        text = path.read_text().replace("/opt/maxgreen/bin/maxgreen", shutil.which("true"))
        (tmp_path / path.name).write_text(text)
    units = sorted(str(path) for path in tmp_path.iterdir())
    done = subprocess.run([program, "verify", "--man=no", *units], capture_output=True, text=True)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "maxgreen" in line]
    assert ours == []


def test_the_cron_file_runs_the_same_command_as_the_unit():
    command = "maxgreen settle run --period last --config /etc/maxgreen/settlement.toml"
    assert command in (ROOT / "deploy/systemd/maxgreen-settle.service").read_text()
    [line] = [x for x in (ROOT / "deploy/maxgreen-settle.cron").read_text().splitlines() if command in x]
    assert re.match(r"30 2 \* \* \* maxgreen ", line)


def test_grafanas_files_point_at_each_other():
    found = yaml.safe_load((ROOT / "grafana/provisioning/datasources/maxgreen.yaml").read_text())["datasources"]
    sources = {one["uid"] for one in found}
    provider = yaml.safe_load((ROOT / "grafana/provisioning/dashboards/maxgreen.yaml").read_text())["providers"][0]
    assert provider["type"] == "file"
    assert provider["options"]["path"] == "/etc/grafana/dashboards/maxgreen"
    for path in (ROOT / "grafana/dashboards").glob("*.json"):
        for panel in json.loads(path.read_text())["panels"]:
            assert panel["datasource"]["uid"] in sources


def test_every_unit_exposes_little(tmp_path):
    program = need(shutil.which("systemd-analyze"), "systemd-analyze is not installed (apt-get install systemd)")
    for path in sorted((ROOT / "deploy/systemd").glob("*.service")):
        done = subprocess.run([program, "security", "--offline=true", path], capture_output=True, text=True)
        assert float(re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)[1]) <= 2.5, path.name


def test_the_compose_file_has_its_schema_and_commands_that_there_are():
    path = ROOT / "deploy/compose.yaml"
    subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", path], check=True
    )
    compose = yaml.safe_load(path.read_text())
    said = []
    for service in compose["services"].values():
        if service.get("image") in {None, "maxgreen"}:
            command = service.get("command", [])
            text = command[0] if len(command) == 1 else f"maxgreen {' '.join(command)}"
            said += re.findall(
                r"maxgreen ((?:[a-z]+ )[a-z]+)((?: --?[a-z-]+)*)", f"{text} {service.get('entrypoint', '')}"
            )
    assert len(said) >= 6
    for words, _ in said:
        done = subprocess.run([PROGRAM, *words.split(), "--help"], capture_output=True, text=True)
        assert done.returncode == 0, words
    assert {"certificates", "broker", "database", "ingest", "dapp", "settle", "keeper"} == compose["services"].keys()
    from dapp.config import DappSettings
    from ingest.config import IngestSettings
    from maxgreen.settings import load
    from settlement.config import SettlementSettings

    folder = ROOT / "deploy/compose-settings"
    for kind, name in ((IngestSettings, "ingest"), (DappSettings, "dapp"), (SettlementSettings, "settlement")):
        assert load(kind, folder / f"{name}.toml").ledger == "postgresql://maxgreen@database:5432/maxgreen"


@pytest.mark.parametrize("service", ["agent", "ingest", "settle", "dapp"])
def test_the_sample_settings_are_valid_toml_with_every_key_explained(service):
    import tomllib

    text = subprocess.run([PROGRAM, service, "config", "sample"], capture_output=True, text=True, check=True).stdout
    tomllib.loads(text)
    keys = [k for k, line in enumerate(text.splitlines()) if re.match(r"(# )?[a-z_]+ = ", line)]
    lines = text.splitlines()
    assert keys
    assert all(lines[k - 1].startswith("## ") for k in keys)
