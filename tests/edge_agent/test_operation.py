"""An agent at work: commands, transfers, heat and budget, a full medium, tamper, what it shows."""

import json
import threading
import time
import urllib.request
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent import host, obedience
from edge_agent import status as agent_status
from edge_agent import supervisor as supervisor_module
from edge_agent.agent import Agent
from edge_agent.governor import BudgetSettings, Conditions, Pause, pause_reason
from edge_agent.parts import AgentParts
from edge_agent.source import DelayHistogram, Tick
from edge_agent.spool import Spool
from edge_agent.uplink import Uplink
from edge_agent.windows import ProofWindows
from maxgreen.errors import Retryable
from maxgreen.lock import FolderLock
from maxgreen.protocol.backend import BackendKeys, Command, CommandKind, sign_command
from maxgreen.protocol.batch import EventKind, Work
from maxgreen.protocol.cose import network_digest
from maxgreen.protocol.identity import BEACON_TOPIC, device_topic
from maxgreen.protocol.keys import MemorySigner
from maxgreen.protocol.reasons import Reason, Refusal
from maxgreen.verify.meter import Sample
from simulator.lab import NETWORK, T0_MS, Lab
from tests.conftest import free_port
from tests.edge_agent.test_agent import BACKEND, Clock, sealed, ticks
from tests.edge_agent.test_live import Burst
from tests.fakes.board import FakeBoard
from tests.fakes.link import FakeLink
from tests.verify.test_verdict import Ledger


class Rig:
    """An agent on fakes, driven by hand: `tick` measures, `command` lets the backend ask for something."""

    def __init__(self, folder, **parts):
        self.lab, self.link, self.clock, self.board = Lab(), FakeLink(), Clock(), FakeBoard()
        self.source = Burst()
        self.spool = Spool(folder / "spool.db", network_digest(NETWORK))
        keys = BackendKeys((BACKEND.spki,), NETWORK)
        uplink = Uplink(self.link, self.spool, self.lab.device, keys, NETWORK, self.clock, window=20, resend_s=30)
        made = AgentParts(
            self.source, self.lab.signer, self.spool, uplink, None, self.lab.birth, NETWORK, 1_000, 60_000,
            clock=self.clock, board=self.board, line_channel=1,
        )  # fmt: skip
        self.agent = Agent(replace(made, **parts))
        self.second = 0
        self.link.connect()

    def tick(self, count=1, **changes):
        for tick in ticks(self.second, count):
            self.source.now_ms, self.clock.t_ms = tick.boot_ms, T0_MS + tick.boot_ms - 60_000
            self.agent._tend_due_s = 0
            self.agent.take(replace(tick, **changes))
        self.second += count

    def command(self, number, kind, arguments=None, *, life_ms=60_000, device=None, signer=BACKEND):
        now = self.clock.t_ms
        command = Command(device or self.lab.device, number, now, now + life_ms, kind, arguments or {})
        self.link.deliver(device_topic(self.lab.device, "command"), sign_command(command, signer, NETWORK))
        self.agent.exchange()

    def start(self, number=1, most_s=600, most_mws=10**9, channel=1):
        self.command(number, CommandKind.START_TRANSFER, {0: channel, 1: most_s, 2: most_mws})

    def events(self, kind):
        return [(b, e) for b in sealed(self.spool) for e in b.events if e.kind == kind]


def alarms(rig):
    return [alarm.text for alarm in rig.agent.report.alarms]


@pytest.fixture
def rig(tmp_path):
    found = Rig(tmp_path)
    found.tick(3)
    return found


@pytest.mark.rule("P-CMD-1", "P-ATT-1")
def test_a_transfer_closes_the_relay_and_is_attested_at_both_its_ends(rig):
    rig.start(number=7)
    assert rig.board.closed
    rig.tick(10)
    rig.command(8, CommandKind.STOP_TRANSFER, {0: 1})
    assert not rig.board.closed
    starts, stops = rig.events(EventKind.TRANSFER_START), rig.events(EventKind.TRANSFER_STOP)
    assert [event.command for _, event in starts] == [None, 7]  # the first opens the device's lines
    assert [event.command for _, event in stops] == [8]
    assert {a.channel for batch, _ in (starts[1], stops[0]) for a in batch.attestations} == {0, 1}
    ledger = Ledger(Lab())
    assert {ledger.send(m) for _, m in rig.spool.messages(0, 100)} == {Reason.NONE}


@pytest.mark.rule("P-CMD-1")
def test_the_relay_opens_at_the_first_limit_also_without_backend_and_readings(rig):
    rig.start(number=1, most_s=20, most_mws=5 * 18_000)
    rig.link.disconnect()
    rig.tick(5)
    assert rig.board.closed
    rig.tick(1)
    assert not rig.board.closed
    rig.link.connect()
    rig.start(number=2, most_s=20)
    begun = rig.source.now_ms
    rig.tick(19)
    rig.source.now_ms = begun + 19_999
    rig.agent.exchange()
    assert rig.board.closed
    rig.source.now_ms += 1
    rig.agent.exchange()
    assert not rig.board.closed


def test_a_sampler_that_hangs_opens_the_relay_and_no_transfer_begins_blind(rig):
    rig.start(number=1)
    rig.source.now_ms += 2_000
    rig.agent.exchange()
    assert rig.board.closed
    rig.source.now_ms += 1
    rig.agent.exchange()
    assert not rig.board.closed
    rig.start(number=2)
    assert not rig.board.closed
    rig.second += 20
    rig.tick(1)
    rig.tick(1, samples={}, faults=(1,))
    rig.start(number=3)
    assert not rig.board.closed


@pytest.mark.rule("P-CMD-1")
def test_a_stop_command_opens_the_relay_also_when_it_cannot_be_noted(rig):
    rig.start(number=1)
    rig.spool._db.execute("PRAGMA query_only = 1")
    rig.command(2, CommandKind.STOP_TRANSFER, {0: 1})
    assert not rig.board.closed


def test_no_command_is_obeyed_while_the_agent_stops_and_the_pins_are_given_back_last(rig):
    command = Command(rig.lab.device, 1, rig.clock.t_ms, rig.clock.t_ms + 60_000, CommandKind.START_TRANSFER,
                      {0: 1, 1: 60, 2: 10**9})  # fmt: skip
    rig.link.deliver(device_topic(rig.lab.device, "command"), sign_command(command, BACKEND, NETWORK))
    rig.agent.close()
    assert rig.board.released
    assert not rig.board.closed


class Token:
    """A signing key in a token that can be pulled out."""

    def __init__(self, signer):
        self.signer, self.spki, self.out = signer, signer.spki, False

    def sign(self, message):
        if self.out:
            raise Retryable("PKCS#11 token: DeviceRemoved")
        return self.signer.sign(message)


def test_a_token_that_is_pulled_out_for_a_while_loses_no_reading(tmp_path):
    token = Token(Lab().signer)
    rig = Rig(tmp_path, signer=token)
    rig.tick(100)
    token.out = True
    rig.tick(300)
    rig.command(1, CommandKind.SEND_REGISTERS)
    assert "DeviceRemoved" in alarms(rig)[0]
    assert rig.agent.is_well
    token.out = False
    rig.tick(60)
    rig.agent.sealer.stop()
    assert alarms(rig) == []
    batches = sealed(rig.spool)
    assert batches[-1].channels[0].register_mws == (rig.second - 1) * 18_000
    assert sum(len(b.channels[0].voltage_uv) for b in batches) == rig.second
    ledger = Ledger(Lab())
    assert {ledger.send(m) for _, m in rig.spool.messages(0, 100)} == {Reason.NONE}


def test_an_interval_changes_for_meter_and_source_together_also_when_the_key_is_away(tmp_path):
    token = Token(Lab().signer)
    rig = Rig(tmp_path, signer=token)
    rig.tick(3)
    token.out = True
    rig.command(1, CommandKind.SAMPLING_INTERVAL, {0: 2_000})
    assert rig.source.interval_ms == rig.agent.sealer.interval_ms == 2_000
    rig.tick(60)
    token.out = False
    rig.tick(60)
    ledger = Ledger(Lab())
    assert {ledger.send(m) for _, m in rig.spool.messages(0, 100)} == {Reason.NONE}
    assert {b.interval_ms for b in sealed(rig.spool)} == {1_000, 2_000}


def test_a_shorter_interval_loses_nothing_of_the_segment_that_it_ends(tmp_path):
    rig = Rig(tmp_path, interval_ms=60_000)
    at = [60_000 * k for k in range(4)] + [180_000 + 30_000 + 1_000 * k for k in range(20)]
    for k, ms in enumerate(at):
        if k == 4:
            rig.command(1, CommandKind.SAMPLING_INTERVAL, {0: 1_000})
        sample = Sample(18_000_000, 1_000_000, 60_000 + ms)
        rig.source.now_ms, rig.clock.t_ms = sample.boot_ms, T0_MS + ms
        rig.agent.take(Tick(T0_MS + ms, sample.boot_ms, {0: sample, 1: sample}))
    rig.agent.sealer.stop()
    last = sealed(rig.spool)[-1].channels[0]
    assert (last.register_mws, last.gap_ms) == (18 * at[-1], 0)
    assert {b.interval_ms for b in sealed(rig.spool)} == {60_000, 1_000}
    ledger = Ledger(Lab())
    assert {ledger.send(m) for _, m in rig.spool.messages(0, 100)} == {Reason.NONE}


@pytest.mark.rule("P-CMD-1")
def test_a_command_is_obeyed_once_never_a_lower_one_never_late_never_without_a_clock(rig, caplog):
    rig.start(number=5)
    rig.command(6, CommandKind.STOP_TRANSFER, {0: 1})
    for number in (5, 6, 4):
        rig.start(number=number)
    rig.command(9, CommandKind.START_TRANSFER, {0: 1, 1: 60, 2: 10**9}, life_ms=0)
    rig.command(10, CommandKind.START_TRANSFER, {0: 1, 1: 60, 2: 10**9}, device=bytes(16))
    rig.command(11, CommandKind.START_TRANSFER, {0: 1, 1: 60, 2: 10**9}, signer=MemorySigner.from_secret(3))
    rig.start(number=12, channel=0)
    assert not rig.board.closed
    rig.tick(1, wall_ms=None)
    rig.start(number=13)
    assert not rig.board.closed
    said = " ".join(record.getMessage() for record in caplog.records)
    for word in (
        "obeyed already",
        "expired",
        "another device",
        "not one of the backend's",
        "line is channel 1",
        "clock",
    ):
        assert word in said


@pytest.mark.rule("P-CMD-1")
def test_a_restart_obeys_no_command_again(tmp_path):
    first = Rig(tmp_path)
    first.tick(3)
    first.start(number=3)
    first.agent.close()
    assert first.board.history == [True, False]
    again = Rig(tmp_path)
    again.second = 10
    again.tick(3)
    again.start(number=3)
    assert not again.board.closed


@given(st.integers(-1, 50), st.integers(0, 50), st.integers(0, 2_000), st.integers(0, 2_000), st.booleans())
def test_only_a_newer_command_in_its_time_is_obeyed(last, number, now, expires, dated):
    command = Command(bytes(16), number, 0, expires, CommandKind.SEND_REGISTERS)
    refused = obedience.refusal(command, last_number=last, now_ms=now, synchronised=dated)
    assert (refused is None) == (dated and number > last and now < expires)


@pytest.mark.rule("P-CMD-2")
def test_a_device_says_once_what_became_of_each_command(rig):
    def fates():
        return [(e.kind, e.command, e.refusal) for b in sealed(rig.spool) for e in b.events if e.command is not None]

    obeyed, refused = EventKind.COMMAND_OBEYED, EventKind.COMMAND_REFUSED
    rig.start(number=5, channel=0)
    rig.start(number=6)
    rig.tick(2)
    for _ in range(3):  # each comes again after a connection
        rig.command(7, CommandKind.STOP_TRANSFER, {0: 1})
        rig.command(8, CommandKind.SEND_REGISTERS)
        rig.command(9, CommandKind.SAMPLING_INTERVAL, {0: 1})
        rig.command(10, CommandKind.SEND_REGISTERS, life_ms=-1)
        rig.command(4, CommandKind.SEND_REGISTERS, device=bytes(16))
        rig.command(2, CommandKind.SEND_REGISTERS)
        rig.tick(2)
    rig.tick(60)
    assert fates() == [
        (refused, 5, Refusal.OTHER_CHANNEL),
        (EventKind.TRANSFER_START, 6, None),
        (EventKind.TRANSFER_STOP, 7, None),
        (obeyed, 7, None),
        (obeyed, 8, None),
        (refused, 9, Refusal.OUT_OF_BOUNDS),
        (refused, 10, Refusal.EXPIRED),
        (refused, 2, Refusal.OUT_OF_ORDER),
    ]
    ledger = Ledger(Lab())
    assert {ledger.send(m) for _, m in rig.spool.messages(0, 100)} == {Reason.NONE}


@pytest.mark.rule("P-CMD-2")
def test_a_command_without_a_clock_is_refused_and_then_obeyed_and_nothing_piles_up(tmp_path):
    rig = Rig(tmp_path)
    rig.tick(3, wall_ms=None)
    for number in range(200, 300):
        rig.command(number, CommandKind.SEND_REGISTERS)
    rig.tick(3)
    rig.command(300, CommandKind.SEND_REGISTERS)
    rig.tick(70)
    events = rig.events(EventKind.COMMAND_REFUSED)
    assert {event.refusal for _, event in events} == {Refusal.UNSYNCHRONISED}
    assert [event.command for _, event in rig.events(EventKind.COMMAND_OBEYED)] == [300]


def test_any_fault_of_the_lines_sensor_and_every_stop_open_the_relay(rig):
    rig.start(number=1)
    rig.tick(1, samples={}, faults=(0,))
    assert rig.board.closed
    rig.tick(1, samples={}, faults=(1,))
    assert not rig.board.closed
    rig.start(number=2)
    rig.agent.close()
    assert rig.board.released
    assert not rig.board.closed
    assert rig.agent.sealer.tip.next_seq > 0


def test_a_sampler_that_dies_opens_the_relay(tmp_path):
    rig = Rig(tmp_path)
    rig.source.given, rig.source.error = list(ticks(0, 3)), RuntimeError("bus gone")
    rig.board.closed = True
    with pytest.raises(RuntimeError, match="bus gone"):
        rig.agent.run()
    assert rig.board.released


def test_a_confirmed_rotation_ends_the_key_with_its_first_complete_round(tmp_path):
    rig = Rig(tmp_path, finish_key=True)
    rig.source.given = list(ticks(0, 5))
    rig.source.over.set()
    rig.agent.run()
    assert rig.agent.key_finished
    spool = Spool(tmp_path / "spool.db", network_digest(NETWORK))
    assert spool.tip.closed
    assert sealed(spool)[-1].events[-1].kind == EventKind.LAST_OF_KEY


def test_command_2_states_birth_and_registers_at_once(rig):
    before = len(sealed(rig.spool))
    rig.tick(5)
    rig.command(1, CommandKind.SEND_REGISTERS)
    batches = sealed(rig.spool)
    assert len(batches) == before + 1
    assert {a.channel for a in batches[-1].attestations} == {channel.number for channel in batches[-1].channels}
    rig.command(2, CommandKind.SEND_REGISTERS)  # while no batch is open: the next reading answers
    rig.tick(1)
    batches = sealed(rig.spool)
    assert len(batches) == before + 2
    assert batches[-1].attestations
    rig.tick(60)
    assert [b.birth is not None for b in sealed(rig.spool)].count(True) == 3


def test_command_3_changes_the_interval_from_the_next_batch_on(rig):
    rig.command(1, CommandKind.SAMPLING_INTERVAL, {0: 5_000})
    assert rig.source.interval_ms == 5_000
    rig.tick(60)
    assert {b.interval_ms for b in sealed(rig.spool)} == {1_000, 5_000}
    rig.command(2, CommandKind.SAMPLING_INTERVAL, {0: 10**9})
    assert rig.source.interval_ms == 5_000
    ledger = Ledger(Lab())
    assert {ledger.send(m) for _, m in rig.spool.messages(0, 100)} == {Reason.NONE}


def test_at_the_spools_limit_nothing_is_dropped_and_sampling_slows_with_an_event(tmp_path):
    rig = Rig(tmp_path, most_spool_bytes=1)
    rig.tick(3)
    assert rig.source.interval_ms == 60_000
    rig.tick(100)
    assert rig.spool.oldest_seq() == 0
    assert len(rig.events(EventKind.SPOOL_LIMIT)) == 1


def test_a_full_medium_keeps_readings_in_memory_and_loses_none_of_them(rig, caplog):
    rig.tick(120)
    pages = rig.spool._db.execute("PRAGMA page_count").fetchone()[0]
    rig.spool._db.execute(f"PRAGMA max_page_count = {pages}")  # the real error: SQLITE_FULL
    rig.tick(600)
    assert rig.agent.sealer.stalled > 0
    assert any("full" in alarm and "free" in alarm for alarm in alarms(rig))
    rig.spool._db.execute("PRAGMA max_page_count = 1000000")
    rig.tick(60)
    rig.agent.sealer.stop()
    assert rig.agent.sealer.stalled == 0
    batches = sealed(rig.spool)
    assert batches[-1].channels[0].register_mws == (rig.second - 1) * 18_000
    assert sum(len(b.channels[0].voltage_uv) for b in batches) == rig.second
    ledger = Ledger(Lab())
    assert {ledger.send(m) for _, m in rig.spool.messages(0, 100)} == {Reason.NONE}
    assert [r.getMessage() for r in caplog.records if "written again" in r.getMessage()]


def test_an_opened_case_is_an_event_once_and_an_alarm_while_it_is_open(rig):
    rig.start(number=1)
    rig.board.tamper = True
    rig.tick(3)
    assert not rig.board.closed
    assert alarms(rig) == ["the case is open; no transfer begins; close it"]
    rig.tick(60)
    rig.board.tamper = False
    rig.tick(1)
    assert alarms(rig) == []
    assert len(rig.events(EventKind.TAMPER)) == 1
    assert any(b.health.tamper_open for b in sealed(rig.spool))


class Worker:
    """What an agent asks of its miner."""

    duty_permille, lacks_beacon, fault = 500, False, ""

    def __init__(self):
        self.paused, self.reasons = False, []

    def pause(self, reason):
        self.paused = reason is not None
        self.reasons.append(reason)

    def harvest(self, prev):
        return None

    def follow(self, head):
        pass

    def stop(self):
        pass


@pytest.mark.rule("P-POW-5")
def test_mining_pauses_with_heat_and_the_status_says_which_proof_windows_that_costs(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "cpu_mdeg", lambda: 80_000)
    rig = Rig(tmp_path, worker=Worker())
    rig.tick(2_400)
    assert rig.agent.report.mining == "pauses: CPU at 80 °C"
    lost = rig.agent.report.proof_windows["lost"]
    assert [window["why"] for window in lost] == ["CPU at 80 °C"] * 2
    monkeypatch.setattr(host, "cpu_mdeg", lambda: 69_000)
    rig.tick(1)
    assert rig.agent.report.mining.startswith("pauses")  # for a minute at least
    rig.agent.supervisor._pause_ends_s = 0.0
    rig.tick(1)
    assert rig.agent.report.mining == "on"


@pytest.mark.rule("P-POW-5")
@pytest.mark.parametrize(
    ("budget", "now", "paused", "reason"),
    [
        ({}, Conditions(), False, None),
        ({}, Conditions(cpu_mdeg=76_000), False, "76"),
        ({}, Conditions(cpu_mdeg=74_000), False, None),
        ({}, Conditions(cpu_mdeg=74_000), True, "74"),
        ({}, Conditions(throttled=0x4), False, "throttles"),
        ({}, Conditions(throttled=0x50000), False, None),
        ({"min_power_w": 5}, Conditions(generation_mw=4_999), False, "panels below 5 W"),
        ({"min_power_w": 5}, Conditions(generation_mw=5_000), False, None),
        ({"min_power_w": 5}, Conditions(), False, "panels"),
        ({"min_battery_v": 12.1}, Conditions(battery_uv=12_099_999), False, "battery below 12.1 V"),
        ({"min_battery_v": 12.1}, Conditions(battery_uv=12_100_000), False, None),
    ],
)
def test_mining_pauses_for_what_the_owner_set(budget, now, paused, reason):
    found = pause_reason(BudgetSettings(**budget), now, since=Pause("heat", "") if paused else None)
    assert found is None if reason is None else reason in found.text


@pytest.mark.rule("P-POW-5", "P-POW-4")
def test_a_paused_miner_stops_at_once_and_goes_on_with_what_it_found():
    from edge_agent.work import Worker as RealWorker
    from simulator.lab import beacon

    lab = Lab()
    worker = RealWorker(lab.device, nbits=0x1F00FFFF, duty=1.0)
    worker.follow(lab.head)
    worker.take_beacon(beacon())
    worker.start()
    try:
        deadline = time.monotonic() + 120
        while worker.hashes == 0:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        worker.pause("too hot")
        resting = -1
        while worker.hashes != resting:  # what it had begun ends, and nothing follows
            assert time.monotonic() < deadline
            resting = worker.hashes
            time.sleep(0.5)
        assert worker.duty_permille == 0
        worker.pause(None)
        while worker.hashes <= resting:
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        worker.stop()


@pytest.mark.rule("P-POW-4")
def test_a_window_without_shares_between_two_with_some_is_not_lost():
    windows, lab = ProofWindows(), Lab()
    for k, shares in enumerate([1, 0, 1, 0, 0, 1, 1, 1]):
        work = Work(1, 1, tuple(range(shares))) if shares else None
        windows.sealed(replace(lab.batch(), t0_ms=T0_MS + k * 600_000, work=work))
    report = windows.report()
    assert (report["windows"], report["with_shares"]) == (8, 5)
    assert [lost["start"] for lost in report["lost"]] == ["2026-01-01T00:30:00Z", "2026-01-01T00:40:00Z"]


def test_ready_waits_for_every_channel_but_not_for_one_that_is_dead(tmp_path):
    rig = Rig(tmp_path)
    rig.tick(29, samples={0: next(ticks(0, 1)).samples[0]}, faults=(1,))
    assert not rig.agent.is_well
    rig.second = 31
    rig.tick(1, faults=(1,), samples={})
    assert rig.agent.is_well
    other = Rig(tmp_path / "other")
    assert not other.agent.is_well
    other.tick(1)
    assert other.agent.is_well


def test_an_agent_that_seals_nothing_is_not_well(rig, monkeypatch):
    assert rig.agent.is_well
    now = time.monotonic() + 10_000
    monkeypatch.setattr(supervisor_module.time, "monotonic", lambda: now)
    assert not rig.agent.is_well


def test_metrics_and_status_file_show_what_the_agent_knows(rig, tmp_path, monkeypatch):
    rig.tick(90)
    port = free_port()
    shown = agent_status.Shown(rig.agent, port, tmp_path)
    shown.refresh()
    with FolderLock(tmp_path / "state", "test", status=str(tmp_path / "status.json")):
        value = agent_status.read_running(tmp_path / "state")
    assert 0 <= value.pop("silent_s") < 10
    assert value == json.loads(json.dumps(rig.agent.report.to_json()))
    assert value["channels"]["0"]["power_w"] == 18.0
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    assert 'maxgreen_agent_power_watts{channel="0",role="generation"} 18.0' in text
    assert "maxgreen_agent_clock_synchronised 1.0" in text
    shown.close()
    assert agent_status.read_running(tmp_path / "state") is None
    from rich.console import Console

    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(agent_status.page(rig.agent.report.to_json()))
    page = console.export_text()
    assert "generation: 18.000 W" in page
    assert "synchronised" in page


def test_delays_are_counted_up_to_each_bound():
    delays = DelayHistogram()
    for ms in (0, 0, 1, 3, 7, 5_000):
        delays.add(ms)
    assert delays.counts == [2, 1, 0, 1, 1, 0, 0, 0, 0, 1]
    text = agent_status._histogram(delays)
    assert text.samples[-2].value == 6 or any(s.name.endswith("_count") and s.value == 6 for s in text.samples)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["command", "receipt", "beacon", "state"]), st.binary(max_size=300))
def test_nothing_from_the_network_can_end_the_agent(tmp_path_factory, channel, payload):
    rig = Rig(tmp_path_factory.mktemp("fuzz"))
    topic = BEACON_TOPIC if channel == "beacon" else device_topic(rig.lab.device, channel)
    rig.link.deliver(topic, payload)
    rig.agent.exchange()
    rig.spool.close()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 400), st.integers(0, 7), st.sampled_from(["command", "receipt"]))
def test_a_damaged_message_of_the_backend_is_dropped(tmp_path_factory, place, bit, channel):
    rig = Rig(tmp_path_factory.mktemp("fuzz"))
    rig.tick(1)
    now = rig.clock.t_ms
    message = bytearray(
        sign_command(Command(rig.lab.device, 1, now, now + 9_000, CommandKind.START_TRANSFER, {0: 1, 1: 9, 2: 9}),
                     BACKEND, NETWORK)
    )  # fmt: skip
    message[place % len(message)] ^= 1 << bit
    rig.link.deliver(device_topic(rig.lab.device, channel), bytes(message))
    rig.agent.exchange()
    assert not rig.board.closed
    rig.spool.close()


def test_stopping_an_agent_that_transfers_seals_the_end_within_two_seconds(tmp_path):
    rig = Rig(tmp_path)
    rig.source.given = list(ticks(0, 5))
    thread = threading.Thread(target=rig.agent.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not (latest := rig.agent.supervisor._latest) or latest.boot_ms < 64_000:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    begin = time.monotonic()
    rig.agent.stop()
    thread.join(10)
    rig.source.over.set()
    assert time.monotonic() - begin < 2
    spool = Spool(tmp_path / "spool.db", network_digest(NETWORK))
    assert sealed(spool)[-1].channels[0].register_mws == 4 * 18_000


@pytest.mark.rule("P-CMD-1")
def test_a_command_that_cannot_be_noted_is_not_obeyed(rig, caplog):
    rig.spool._db.execute("PRAGMA query_only = 1")  # as a read-only file system
    rig.start(number=1)
    assert not rig.board.closed
    assert "is not obeyed: spool" in caplog.text
    rig.spool._db.execute("PRAGMA query_only = 0")
    rig.start(number=1)
    assert rig.board.closed


def test_a_read_only_file_system_loses_no_reading(rig):
    rig.spool._db.execute("PRAGMA query_only = 1")
    rig.tick(200)
    assert "readonly" in alarms(rig)[0]
    rig.spool._db.execute("PRAGMA query_only = 0")
    rig.tick(1)
    rig.agent.sealer.stop()
    assert sealed(rig.spool)[-1].channels[0].register_mws == (rig.second - 1) * 18_000


@pytest.mark.rule("P-CMD-2")
def test_a_start_whose_relay_does_not_close_is_told_as_refused_alone(rig, monkeypatch):
    def broken(line):
        raise OSError("no such pin")

    monkeypatch.setattr(rig.board, "connect", broken)
    rig.start(number=5)
    rig.tick(70)
    told = [(e.kind, e.refusal) for b in sealed(rig.spool) for e in b.events if e.command == 5]
    assert (EventKind.COMMAND_REFUSED, Refusal.BOARD_FAULT) in told
    assert EventKind.TRANSFER_START not in {kind for kind, _ in told}


@pytest.mark.rule("P-CMD-2")
def test_what_a_power_cut_left_untold_is_not_told_as_refused(tmp_path):
    rig = Rig(tmp_path)
    rig.tick(3)
    rig.spool.obey(7)
    rig.command(7, CommandKind.SEND_REGISTERS)
    rig.tick(70)
    assert [e for b in sealed(rig.spool) for e in b.events if e.command == 7] == []
