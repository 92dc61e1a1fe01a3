"""The relay: whatever hangs, fails or is said twice, it opens; and nothing closes it that should not."""

import random
import threading
import time
from dataclasses import replace

import pytest

from edge_agent.board.gpio import BoardSettings, GpioBoard, note_relay, open_noted_relay
from edge_agent.draft import Happening
from edge_agent.obedience import Obedience
from edge_agent.relay_guard import RelayGuard
from edge_agent.source import Tick
from edge_agent.spool import MediumError
from maxgreen.protocol.backend import BackendKeys, Command, CommandKind, sign_command
from maxgreen.protocol.batch import EventKind
from maxgreen.protocol.identity import device_topic
from maxgreen.protocol.keys import MemorySigner
from maxgreen.verify.meter import Sample
from simulator.lab import NETWORK, T0_MS, Lab
from tests.conftest import wait_for
from tests.edge_agent.test_agent import BACKEND, ticks
from tests.edge_agent.test_operation import Rig, alarms
from tests.fakes.board import FakeBoard
from tests.fakes.lgpio import Pins, rpi_gpio


@pytest.fixture
def rig(tmp_path):
    found = Rig(tmp_path)
    found.tick(3)
    return found


@pytest.mark.rule("P-CMD-1")
def test_the_relay_opens_at_its_limit_while_the_medium_hangs(rig, monkeypatch):
    rig.start(number=1, most_s=5)
    rig.tick(2)
    assert rig.board.closed
    rig.agent.guard.start()
    hang = threading.Event()
    monkeypatch.setattr(rig.spool, "append", lambda *_: hang.wait(60))
    stuck = threading.Thread(target=lambda: rig.tick(60), daemon=True)
    stuck.start()
    wait_for(lambda: not rig.board.closed, seconds=20, what="an open relay")
    assert stuck.is_alive()
    hang.set()
    stuck.join(30)
    rig.agent.guard.close()


@pytest.mark.rule("P-CMD-1")
def test_a_signed_stop_opens_also_while_the_main_loop_hangs(rig):
    rig.start(number=1)
    command = Command(rig.lab.device, 2, rig.clock.t_ms, rig.clock.t_ms + 9, CommandKind.STOP_TRANSFER, {0: 1})
    # nobody reads the notices; the connection's thread hears it
    rig.link.deliver(device_topic(rig.lab.device, "command"), sign_command(command, BACKEND, NETWORK))
    assert not rig.board.closed
    rig.agent.exchange()
    rig.tick(2)
    assert [event.command for _, event in rig.events(EventKind.TRANSFER_STOP)] == [2]


@pytest.mark.rule("P-CMD-1")
@pytest.mark.parametrize("how", ["late", "unsynchronised", "repeated", "lower number", "huge number"])
def test_a_signed_stop_always_opens(rig, how):
    rig.start(number=5)
    if how == "unsynchronised":
        rig.tick(3, wall_ms=None)
    number = {"lower number": 1, "repeated": 5, "huge number": 2**64 - 1}.get(how, 6)
    rig.command(number, CommandKind.STOP_TRANSFER, {0: 1}, life_ms=-(10**9) if how == "late" else 60_000)
    assert not rig.board.closed
    rig.command(number, CommandKind.STOP_TRANSFER, {0: 1})
    assert not rig.board.closed
    rig.tick(2)
    assert len(rig.events(EventKind.TRANSFER_STOP)) == 1


@pytest.mark.rule("P-CMD-1")
def test_a_stop_of_a_stranger_or_for_another_device_opens_nothing(rig):
    rig.start(number=1)
    rig.command(2, CommandKind.STOP_TRANSFER, {0: 1}, signer=MemorySigner.from_secret(3))
    rig.command(3, CommandKind.STOP_TRANSFER, {0: 1}, device=bytes(16))
    assert rig.board.closed


def test_nothing_closes_while_the_case_is_open(rig, caplog):
    rig.board.tamper = True
    rig.start(number=1)  # before anybody has looked at the switch
    assert not rig.board.closed
    rig.tick(2)
    rig.start(number=2)
    assert not rig.board.closed
    assert "the case is open" in caplog.text
    rig.board.tamper = False
    rig.tick(2)
    rig.start(number=3)
    assert rig.board.closed
    rig.board.tamper = True
    rig.agent.guard.check()
    assert not rig.board.closed


@pytest.mark.rule("P-CMD-1")
def test_a_transfer_is_sampled_each_second_and_its_energy_limit_holds(tmp_path):
    rig = Rig(tmp_path, interval_ms=900_000)
    rig.tick(1)
    rig.start(number=1, most_s=3_600, most_mws=18_000 * 60)  # 18 W for a minute
    assert rig.board.closed
    assert rig.source.interval_ms == rig.agent.sealer.interval_ms == 1_000
    begun = rig.second
    while rig.board.closed:
        rig.tick(1)
        assert rig.second < begun + 70
    assert rig.second - begun in {60, 61, 62}
    rig.tick(2)
    assert rig.source.interval_ms == rig.agent.sealer.interval_ms == 900_000


def test_energy_flows_on_between_two_readings(rig):
    rig.start(number=1, most_mws=18_000 * 2)
    rig.tick(2)
    assert rig.board.closed
    rig.agent.guard.check(rig.source.now_ms + 999)
    assert rig.board.closed
    rig.agent.guard.check(rig.source.now_ms + 1_000)
    assert not rig.board.closed


def test_the_start_is_in_the_chain_before_the_stop_also_when_both_come_at_once(rig):
    for number in (1, 2):
        command = Command(
            rig.lab.device, number, rig.clock.t_ms, rig.clock.t_ms + 60_000,
            CommandKind.START_TRANSFER if number == 1 else CommandKind.STOP_TRANSFER,
            {0: 1, 1: 600, 2: 10**9} if number == 1 else {0: 1},
        )  # fmt: skip
        rig.link.notices.put(
            type(next_notice(rig))(device_topic(rig.lab.device, "command"), sign_command(command, BACKEND, NETWORK))
        )
    rig.agent.exchange()
    rig.tick(5)
    kinds = [e.kind for b in rig_batches(rig) for e in b.events if e.command in {1, 2}]
    assert kinds == [EventKind.TRANSFER_START, EventKind.TRANSFER_STOP, EventKind.COMMAND_OBEYED]


def next_notice(rig):
    from maxgreen.mqtt import Incoming

    return Incoming("", b"")


def rig_batches(rig):
    from tests.edge_agent.test_agent import sealed

    return sealed(rig.spool)


class FailingBoard(FakeBoard):
    """Pins that stop working for a while."""

    def __init__(self):
        super().__init__()
        self.broken = False

    def tamper_open(self):
        if self.broken:
            raise OSError(5, "Input/output error")
        return super().tamper_open()


def test_pins_that_fail_open_the_relay_are_an_alarm_and_do_not_end_the_guard(tmp_path, caplog):
    board = FailingBoard()
    rig = Rig(tmp_path, board=board)
    rig.tick(3)
    rig.start(number=1)
    rig.board = board
    assert board.closed
    rig.agent.guard.start()
    board.broken = True
    wait_for(lambda: not board.closed, what="an open relay")
    wait_for(lambda: rig.agent.guard.fault, what="the fault")
    rig.agent.supervisor.report = rig.agent.supervisor.look()
    assert any("Input/output error" in alarm for alarm in alarms(rig))
    board.broken = False
    wait_for(lambda: not rig.agent.guard.fault, what="its end")
    assert sum("board: " in record.getMessage() for record in caplog.records) == 1
    rig.agent.guard.close()


def test_a_hundred_transfers_with_everything_hanging_at_random_each_open_in_time(tmp_path):
    """Real time, scaled: limits of 0.1 to 0.4 s; medium, network and main loop hang at random."""
    chance = random.Random(1)
    board, lab = FakeBoard(), Lab()
    guard = RelayGuard(board, 1, lab.birth, lambda: time.monotonic_ns() // 10**6)
    guard.start()
    stop = threading.Event()

    def sample():
        while not stop.wait(0.01):
            now = time.monotonic_ns() // 10**6
            guard.measured(Tick(None, now, {1: Sample(18_000_000, 1_000_000, now)}), 1_000)

    threading.Thread(target=sample, daemon=True).start()
    wait_for(lambda: guard.refusal(1, time.monotonic_ns() // 10**6) is None, what="a reading")
    late = []
    for number in range(100):
        most_s = chance.uniform(0.1, 0.4)
        limit = chance.choice(["time", "energy"])
        refused = guard.begin(
            number,
            most_ms=round(most_s * 1000) if limit == "time" else 10**6,
            most_mws=10**9 if limit == "time" else round(18_000 * most_s),
        )
        assert refused is None
        begun = time.monotonic()
        wait_for(lambda: not board.closed, seconds=30, what="an open relay")
        late.append(time.monotonic() - begun - most_s)
    stop.set()
    guard.close()
    assert sorted(late)[50] < 2
    starts = [h for h in guard.happened() if h.kind is EventKind.TRANSFER_START]
    assert len(starts) == 100


class TestNotedPins:
    """What opens the relay after the agent's end is what the agent noted, not what the settings say by then."""

    def test_the_noted_pin_is_opened_whatever_the_settings_are_now(self, tmp_path, monkeypatch):
        pins = Pins()
        gpio = rpi_gpio(monkeypatch, pins)
        old = BoardSettings(relay_pin=5, relay_active_low=True)
        note_relay(old, tmp_path, gpio)
        GpioBoard(old, gpio).connect(line=True)
        assert pins.outputs[5] == 0
        assert open_noted_relay(tmp_path, gpio)
        assert pins.outputs[5] == 1

    def test_an_agent_with_other_settings_opens_the_old_pin_first(self, tmp_path, monkeypatch):
        pins = Pins()
        gpio = rpi_gpio(monkeypatch, pins)
        old = BoardSettings(relay_pin=17)
        note_relay(old, tmp_path, gpio)
        GpioBoard(old, gpio).connect(line=True)
        assert pins.outputs[17] == 1
        note_relay(BoardSettings(relay_pin=22), tmp_path, gpio)
        assert pins.outputs[17] == 0

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"relay_pin": 99}', '{"relay_pin": "x"}', '{"other": 1}'])
    def test_a_note_that_is_none_is_none(self, tmp_path, text):
        (tmp_path / "relay.json").write_text(text)
        assert not open_noted_relay(tmp_path)

    @pytest.mark.parametrize(
        ("pin", "active_low", "why"),
        [
            (17, True, "pulled down"),
            (8, False, "pulled up"),
            (5, False, "pulled up"),
            (27, True, "pulled down"),
            (0, True, "HAT"),
            (2, True, "I2C"),
            (14, False, "serial console"),
        ],
    )
    def test_a_relay_that_closes_while_a_pi_starts_is_refused(self, pin, active_low, why):
        with pytest.raises(ValueError, match=why):
            BoardSettings(relay_pin=pin, relay_active_low=active_low)

    def test_safe_pins_are_taken_and_a_pin_is_used_once(self):
        assert BoardSettings(relay_pin=17).relay_pin == 17
        assert BoardSettings(relay_pin=4, relay_active_low=True).relay_pin == 4
        with pytest.raises(ValueError, match="different pins"):
            BoardSettings(relay_pin=17, led_pin=17)


def test_a_command_that_the_medium_cannot_note_begins_nothing(rig, monkeypatch):
    def full(_number):
        raise MediumError("full")

    monkeypatch.setattr(rig.spool, "obey", full)
    rig.start(number=1)
    assert not rig.board.closed


def test_hearing_garbage_does_nothing():
    heard = []
    guard = type("Guard", (), {"stop": lambda _self, *arguments: heard.append(arguments), "stops": 0})()
    keys = BackendKeys((BACKEND.spki,), NETWORK)
    obedience = Obedience(
        Lab().device, keys, None, guard, None,
        boot_ms=None, before_transfer=None, state_birth=None, want_interval=None, is_dated=None, tell=None,
    )  # fmt: skip
    for payload in (b"", b"\xff" * 50, bytes(70_000)):
        obedience.hear(payload)
    start = Command(Lab().device, 1, T0_MS, T0_MS + 9, CommandKind.START_TRANSFER, {0: 1, 1: 1, 2: 1})
    obedience.hear(sign_command(start, BACKEND, NETWORK))
    assert heard == []


def test_what_happened_is_told_once():
    guard = RelayGuard(FakeBoard(), 1, Lab().birth, lambda: 70_000)
    tick = replace(next(ticks(0, 1)), boot_ms=70_000)
    guard.measured(tick, 1_000)
    guard.begin(4, most_ms=1_000, most_mws=10)
    guard.stop("test", 5)
    assert guard.happened() == [
        Happening(EventKind.TRANSFER_START, 70_000, 4),
        Happening(EventKind.TRANSFER_STOP, 70_000, 5),
    ]
    assert guard.happened() == []
