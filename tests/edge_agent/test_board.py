"""Relay, tamper switch and light: the fake and the real RPi.GPIO API (rpi-lgpio) pass the same suite."""

import pytest

from edge_agent.board.gpio import BoardSettings, GpioBoard
from edge_agent.light import Pattern, pattern
from maxgreen.errors import Fatal
from tests.fakes.board import FakeBoard
from tests.fakes.lgpio import Pins, rpi_gpio

TAMPER, LED = 27, 22
RELAY = {False: 17, True: 5}  # a pin that a Pi pulls to the level that keeps the relay open


class OnPins:
    """The real board, and the pins that show what it did."""

    def __init__(self, monkeypatch, active_low):
        self.pins, self.active_low = Pins(), active_low
        settings = BoardSettings(
            relay_pin=RELAY[active_low], relay_active_low=active_low, tamper_pin=TAMPER, led_pin=LED
        )
        self.board = GpioBoard(settings, rpi_gpio(monkeypatch, self.pins))

    closed = property(lambda self: bool(self.pins.outputs[RELAY[self.active_low]]) != self.active_low)
    lit = property(lambda self: bool(self.pins.outputs[LED]))

    def set_tamper(self, is_open):
        self.pins.inputs[TAMPER] = int(is_open)


class OnFake:
    def __init__(self):
        self.board = FakeBoard()

    closed = property(lambda self: self.board.closed)
    lit = property(lambda self: self.board.lit)

    def set_tamper(self, is_open):
        self.board.tamper = is_open


@pytest.fixture(params=["fake", "active high", "active low"])
def wired(request, monkeypatch):
    return OnFake() if request.param == "fake" else OnPins(monkeypatch, request.param == "active low")


def test_the_relay_is_open_from_the_first_instant_on_and_after_the_release(wired):
    assert not wired.closed
    wired.board.connect(line=True)
    assert wired.closed
    wired.board.connect(line=False)
    assert not wired.closed
    wired.board.connect(line=True)
    wired.board.release()
    assert not wired.closed


def test_the_tamper_switch_and_the_light_are_what_they_say(wired):
    for is_open in (False, True, False):
        wired.set_tamper(is_open)
        assert wired.board.tamper_open() is is_open
    for on in (True, False):
        wired.board.light(on=on)
        assert wired.lit is on


def test_a_released_relay_stays_driven_open(monkeypatch):
    wired = OnPins(monkeypatch, active_low=True)
    wired.board.release()
    assert wired.pins.outputs[RELAY[True]] == 1
    assert RELAY[True] in wired.pins.claimed


def test_nothing_wired_answers_nothing(monkeypatch):
    board = GpioBoard(BoardSettings(), rpi_gpio(monkeypatch, Pins()))
    assert not board.has_relay
    assert board.tamper_open() is None
    board.connect(line=True)
    board.light(on=True)
    board.release()


def test_a_machine_without_pins_is_told_what_to_install():
    with pytest.raises(Fatal, match=r"maxgreen\[pi\]"):
        GpioBoard(BoardSettings(relay_pin=RELAY[False]))


def test_every_pattern_can_be_told_from_the_others():
    shown = {p: tuple(p.lit(t) for t in range(0, 6_000, 20)) for p in Pattern}
    assert len(set(shown.values())) == len(Pattern)
    assert all(any(lit) and not all(lit) for lit in shown.values())


@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        ({}, Pattern.FINE),
        ({"transferring": True}, Pattern.SENDING_ENERGY),
        ({"connected": False, "transferring": True}, Pattern.NO_BROKER),
        ({"dated": False, "connected": False}, Pattern.NO_CLOCK),
        ({"fault": True, "dated": False}, Pattern.FAULT),
        ({"alarm": True, "fault": True}, Pattern.ALARM),
    ],
)
def test_the_most_urgent_thing_is_shown(state, wanted):
    fine = {"alarm": False, "fault": False, "dated": True, "connected": True, "transferring": False}
    assert pattern(**{**fine, **state}) is wanted
