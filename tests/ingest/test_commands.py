"""Commands from the operator's hands to a device's relay."""

import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from typer.testing import CliRunner

from ingest.cli import app
from ingest.commands import give
from ingest.housekeeping import Housekeeping
from maxgreen.chain.deployment import FIELDS, Addresses
from maxgreen.errors import UsageError
from maxgreen.ledger.book import Book
from maxgreen.ledger.engine import open_engine
from maxgreen.protocol.backend import CommandKind
from maxgreen.protocol.batch import Event, EventKind
from maxgreen.protocol.identity import device_topic
from maxgreen.protocol.reasons import Refusal
from simulator.lab import NETWORK, T0_MS, Lab
from tests.edge_agent.test_agent import BACKEND, BACKEND_SECRET, Clock
from tests.edge_agent.test_operation import Rig
from tests.ingest.desks import Bench, Wire, made, register

NOBODY = "0x" + 40 * "0"


class Station:
    """An operator's machine: settings, key and ledger in a folder, and the running service's consumer."""

    def __init__(self, folder, engine):
        key = ec.derive_private_key(BACKEND_SECRET, ec.SECP256R1())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / "backend.pem").write_bytes(pem)
        (folder / "backend.pem").chmod(0o600)
        chain_id, registry = NETWORK.removeprefix("eip155:").split(":")
        addresses = Addresses(
            chain_id=int(chain_id), **{**dict.fromkeys(FIELDS.values(), NOBODY), "registry": registry}
        )
        addresses.save(folder / "deployment.json")
        self.clock_file = folder / "clock"
        self.config = folder / "ingest.toml"
        self.config.write_text(
            f'ledger = "{engine.url.render_as_string(hide_password=False)}"\nkey_file = "{folder}/backend.pem"\n'
            f'clock_file = "{self.clock_file}"\n[chain]\ndeployment = "{folder}/deployment.json"\n'
        )
        self.wire, self.clock, self.bench = Wire(), Clock(), Bench(engine)
        deployment = type("Deployment", (), {"network": NETWORK, "chain": None})()
        self.house = Housekeeping(engine, self.wire, deployment, BACKEND, self.clock, refresh_s=1)
        self.at(T0_MS + 10_000)

    def hear(self, rig):
        """Judge all that a device has sealed."""
        self.bench.send(*[message for _, message in rig.spool.messages(0, 1_000)], received_ms=rig.clock.t_ms + 1)

    def at(self, t_ms):
        self.clock.t_ms = t_ms
        self.clock_file.write_text(str(t_ms))

    def run(self, *arguments):
        return CliRunner().invoke(app, ["command", *map(str, arguments), "--config", str(self.config)])

    def sends(self):
        self.wire.sent.clear()
        self.house.commands.step()
        return list(self.wire.sent)


@pytest.fixture
def engine(ledger_url):
    return made(ledger_url)


@pytest.fixture
def station(tmp_path, engine):
    Bench(engine).send(Lab().next())
    return Station(tmp_path, engine)


@pytest.mark.rule("P-CMD-1")
def test_an_operators_command_closes_and_opens_a_devices_relay(engine, tmp_path):
    rig, station = Rig(tmp_path), Station(tmp_path, engine)
    rig.tick(3)
    device = rig.lab.device.hex()
    station.hear(rig)
    station.at(rig.clock.t_ms)
    assert (
        station.run("start-transfer", device, "--channel", 1, "--seconds", 60, "--kwh", 0.5, "--who", "Ann").exit_code
        == 0
    )
    [(topic, message, retained)] = station.sends()
    assert not retained
    rig.link.deliver(topic, message)
    rig.agent.exchange()
    assert rig.board.closed
    assert station.run("stop-transfer", device, "--channel", 1, "--who", "Ann").exit_code == 0
    [(topic, message, _)] = station.sends()
    rig.link.deliver(topic, message)
    rig.agent.exchange()
    assert not rig.board.closed
    said = [entry["fate"] for entry in json.loads(station.run("list", "--json").stdout)]
    assert said == ["sent", "sent"]
    rig.tick(70)
    station.hear(rig)
    listed = json.loads(station.run("list", "--json").stdout)
    assert [entry["fate"] for entry in listed] == ["obeyed", "obeyed"]
    assert [(entry["kind"], entry["who"]) for entry in listed] == [("stop_transfer", "Ann"), ("start_transfer", "Ann")]
    assert listed[1]["arguments"] == {"0": 1, "1": 60, "2": 1_800_000_000}
    assert "start transfer" in station.run("list").stdout


@pytest.mark.rule("P-CMD-2")
def test_the_operator_reads_why_a_device_refused_and_an_obeyed_command_stays_obeyed(station, engine):
    device, lab = Lab().device.hex(), Lab()
    lab.next()
    for command in (("interval", device, 500), ("registers", device), ("interval", device, 1), ("registers", device)):
        station.run(*command, "--who", "Ann", "--valid-s", 20)
    numbers = [entry["number"] for entry in json.loads(station.run("list", "--json").stdout)][::-1]
    station.sends()
    events = (
        Event(EventKind.COMMAND_OBEYED, 0, numbers[0]),
        Event(EventKind.COMMAND_REFUSED, 0, numbers[1], Refusal.UNSYNCHRONISED),
        Event(EventKind.COMMAND_REFUSED, 0, numbers[2], 999),
        Event(EventKind.COMMAND_REFUSED, 0, 1),
    )
    station.bench.send(lab.next(events=events))
    assert fates(station) == [
        ("sent", None), ("refused", "reason 999"), ("refused", "unsynchronised"), ("obeyed", None)
    ]  # fmt: skip
    events = (
        Event(EventKind.COMMAND_REFUSED, 0, numbers[0], Refusal.OUT_OF_ORDER),
        Event(EventKind.COMMAND_OBEYED, 0, numbers[1]),
    )
    station.bench.send(lab.next(events=events))
    station.at(station.clock.t_ms + 20_000)
    assert fates(station) == [("expired", None), ("refused", "reason 999"), ("obeyed", None), ("obeyed", None)]
    assert "refused: reason 999" in station.run("list").stdout


def fates(station):
    return [(entry["fate"], entry["refusal"]) for entry in json.loads(station.run("list", "--json").stdout)]


def test_a_command_is_sent_once_a_connection_until_it_expires(station):
    device = Lab().device.hex()
    station.run("interval", device, 500, "--who", "Ann", "--valid-s", 100)
    station.run("registers", device, "--who", "Ann", "--valid-s", 10)
    first = station.sends()
    assert [topic for topic, _, _ in first] == [device_topic(Lab().device, "command")] * 2
    assert station.sends() == []
    station.house.greet()
    assert station.sends() == first
    station.at(station.clock.t_ms + 10_000)
    station.house.greet()
    assert station.sends() == first[:1]
    station.at(station.clock.t_ms + 90_000)
    station.house.greet()
    assert station.sends() == []


def test_numbers_rise_also_within_a_millisecond_and_over_a_lost_ledger(engine, tmp_path):
    def given(ledger, now_ms):
        with ledger.begin() as connection:
            book = Book(connection)
            return give(
                book, BACKEND, NETWORK, book.device(Lab().device), None, CommandKind.SEND_REGISTERS, {},
                who="Ann", now_ms=now_ms, valid_ms=1_000,
            ).number  # fmt: skip

    numbers = [given(engine, T0_MS), given(engine, T0_MS), given(engine, T0_MS - 5_000)]
    fresh = open_engine(f"sqlite:///{tmp_path / 'fresh.db'}")
    register(fresh, Lab())
    numbers.append(given(fresh, T0_MS + 60_000))
    assert numbers == sorted(set(numbers))


def test_a_device_or_channel_that_is_not_there_is_said(station):
    unknown = station.run("registers", "00" * 16, "--who", "Ann")
    assert isinstance(unknown.exception, UsageError)
    assert "not registered" in str(unknown.exception)
    wrong = station.run("stop-transfer", Lab().device.hex(), "--channel", 9, "--who", "Ann")
    assert "no channel 9; it has [0, 1]" in str(wrong.exception)
    assert "no command was given yet" in station.run("list").stdout
    assert "32 hex digits" in str(station.run("registers", "miner", "--who", "Ann").exception)
    assert station.sends() == []
    (station.config.parent / "backend.pem").unlink()
    assert "on its machine" in str(station.run("registers", Lab().device.hex(), "--who", "Ann").exception)
