"""Pins of a Raspberry Pi through the RPi.GPIO API: rpi-lgpio (extra `pi`) or RPi.GPIO itself (extra `pi-legacy`).

The tamper switch is polled: edge detection of RPi.GPIO 0.7.1 fails on kernels from 6.6 on.
"""

import json
import time
from pathlib import Path
from typing import Any, Final, Self

from pydantic import Field, model_validator

from maxgreen.errors import Fatal, Retryable
from maxgreen.settings import Table

_LAST_PULLED_UP: Final = 8  # GPIO 0 to 8 are pulled up at power-on, 9 to 27 down (BCM2835, BCM2711, RP1)
_BUSY_AT_START: Final = {
    0: "the firmware looks for a HAT on it",
    1: "the firmware looks for a HAT on it",
    2: "it is I2C's data line",
    3: "it is I2C's clock line",
    14: "the serial console writes on it",
    15: "the serial console listens on it",
}
_BUSY_S: Final = 20.0
_NOTE: Final = "relay.json"


class BoardSettings(Table):
    """What is wired to the GPIO pins; pins are BCM numbers, -1 = not wired."""

    relay_pin: int = Field(default=-1, ge=-1, le=27, description="relay that connects the line to the storage node")
    relay_active_low: bool = Field(default=False, description="the relay's module closes on a low level")
    relay_channel: int = Field(default=1, ge=0, description="the channel that meters this line")
    tamper_pin: int = Field(default=-1, ge=-1, le=27, description="switch to ground that opens with the case")
    led_pin: int = Field(default=-1, ge=-1, le=27, description="status light, lit by a high level")

    @model_validator(mode="after")
    def _is_safe(self) -> Self:
        """Refuse pins that are used twice, and a relay that a Pi closes by itself while it starts."""
        pins = [pin for pin in (self.relay_pin, self.tamper_pin, self.led_pin) if pin >= 0]
        if len(set(pins)) != len(pins):
            raise ValueError("relay_pin, tamper_pin and led_pin must be different pins")
        if self.relay_pin in _BUSY_AT_START:
            raise ValueError(f"relay_pin {self.relay_pin}: {_BUSY_AT_START[self.relay_pin]} while a Pi starts")
        if self.relay_pin >= 0 and self.relay_active_low == (self.relay_pin > _LAST_PULLED_UP):
            pull, level = ("down", "low") if self.relay_active_low else ("up", "high")
            safe = f"0 to {_LAST_PULLED_UP}" if self.relay_active_low else f"{_LAST_PULLED_UP + 1} to 27"
            raise ValueError(
                f"relay_pin {self.relay_pin} is pulled {pull} until the agent runs, and a {level} level closes this "
                f"relay: take one of the pins {safe} (docs/agent.md, Wiring)"
            )
        return self

    @property
    def is_wired(self) -> bool:
        """Whether any pin is in use."""
        return max(self.relay_pin, self.tamper_pin, self.led_pin) >= 0


class GpioBoard:
    """The real pins; the relay is open from the first instant on."""

    def __init__(self, settings: BoardSettings, gpio: Any = None) -> None:
        """Take the pins; Fatal when this machine has none, Retryable when they can't be had now."""
        self._gpio = gpio = gpio or _rpi_gpio()
        self._settings = settings
        self._released = False
        try:
            gpio.setwarnings(False)
            gpio.setmode(gpio.BCM)
            if settings.relay_pin >= 0:
                gpio.setup(settings.relay_pin, gpio.OUT, initial=self._level(line=False))
            if settings.tamper_pin >= 0:
                gpio.setup(settings.tamper_pin, gpio.IN, pull_up_down=gpio.PUD_UP)
            if settings.led_pin >= 0:
                gpio.setup(settings.led_pin, gpio.OUT, initial=gpio.LOW)
        except Exception as error:
            raise Retryable(
                f"GPIO: {error}; is this user in the group gpio, and is no other program using a pin?"
            ) from error

    @property
    def has_relay(self) -> bool:
        """Whether a relay is wired."""
        return self._settings.relay_pin >= 0

    def connect(self, *, line: bool) -> None:
        """Close the relay or open it."""
        if self.has_relay:
            self._gpio.output(self._settings.relay_pin, self._level(line=line))

    def tamper_open(self) -> bool | None:
        """Tell whether the case is open: the pull-up wins when the switch is."""
        if self._settings.tamper_pin < 0:
            return None
        return bool(self._gpio.input(self._settings.tamper_pin))

    def light(self, *, on: bool) -> None:
        """Switch the status light."""
        if self._settings.led_pin >= 0:
            self._gpio.output(self._settings.led_pin, self._gpio.HIGH if on else self._gpio.LOW)

    def release(self) -> None:
        """Open the relay, darken the light and give the pins back."""
        self.connect(line=False)
        if self._released:
            return
        self._released = True
        self.light(on=False)
        # a relay's pin stays driven: as an input it would float, and some modules close on that
        pins = [pin for pin in (self._settings.tamper_pin, self._settings.led_pin) if pin >= 0]
        if pins:
            self._gpio.cleanup(pins)

    def _level(self, *, line: bool) -> Any:
        return self._gpio.HIGH if line != self._settings.relay_active_low else self._gpio.LOW


def note_relay(settings: BoardSettings, folder: Path, gpio: Any = None) -> None:
    """Note in a folder of /run which pin opens the relay; what an earlier agent noted there is opened first."""
    open_noted_relay(folder, gpio)
    if settings.relay_pin >= 0:
        value = {"relay_pin": settings.relay_pin, "relay_active_low": settings.relay_active_low}
        fresh = folder / f".{_NOTE}"
        fresh.write_text(json.dumps(value))
        fresh.replace(folder / _NOTE)


def open_noted_relay(folder: Path, gpio: Any = None) -> bool:
    """Open the relay that the agent noted, whatever the settings say now; False when nothing is noted."""
    try:
        noted = BoardSettings(**json.loads((folder / _NOTE).read_text()))
    except (OSError, ValueError, TypeError):
        return False
    deadline = time.monotonic() + _BUSY_S
    while True:
        try:
            GpioBoard(noted, gpio).release()
        except Retryable:  # a process that is on its way out may hold the pins yet
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return True


def _rpi_gpio() -> Any:
    try:
        from RPi import GPIO  # noqa: PLC0415 - exists on a Pi only
    except (ImportError, RuntimeError) as error:
        raise Fatal(f"GPIO: {error}; on a Pi: pip install 'maxgreen[pi]'; elsewhere leave [board] out") from error
    return GPIO
