"""Pins of a Raspberry Pi through the RPi.GPIO API: rpi-lgpio (extra `pi`) or RPi.GPIO itself (extra `pi-legacy`).

The tamper switch is polled: edge detection of RPi.GPIO 0.7.1 fails on kernels from 6.6 on.
"""

from typing import Any

from pydantic import Field

from maxgreen.errors import Fatal
from maxgreen.settings import Table


class BoardSettings(Table):
    """What is wired to the GPIO pins; pins are BCM numbers, -1 = not wired."""

    relay_pin: int = Field(default=-1, ge=-1, le=27, description="relay that connects the line to the storage node")
    relay_active_low: bool = Field(default=False, description="the relay's module closes on a low level")
    relay_channel: int = Field(default=1, ge=0, description="the channel that meters this line")
    tamper_pin: int = Field(default=-1, ge=-1, le=27, description="switch to ground that opens with the case")
    led_pin: int = Field(default=-1, ge=-1, le=27, description="status light, lit by a high level")

    @property
    def is_wired(self) -> bool:
        """Whether any pin is in use."""
        return max(self.relay_pin, self.tamper_pin, self.led_pin) >= 0


class GpioBoard:
    """The real pins; the relay is open from the first instant on."""

    def __init__(self, settings: BoardSettings, gpio: Any = None) -> None:
        """Take the pins; Fatal when this machine has none."""
        self._gpio = gpio = gpio or _rpi_gpio()
        self._settings = settings
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
            raise Fatal(
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
        self.light(on=False)
        # a relay's pin stays driven: as an input it would float, and some modules close on that
        pins = [pin for pin in (self._settings.tamper_pin, self._settings.led_pin) if pin >= 0]
        if pins:
            self._gpio.cleanup(pins)

    def _level(self, *, line: bool) -> Any:
        return self._gpio.HIGH if line != self._settings.relay_active_low else self._gpio.LOW


def _rpi_gpio() -> Any:
    try:
        from RPi import GPIO  # noqa: PLC0415 - exists on a Pi only
    except (ImportError, RuntimeError) as error:
        raise Fatal(f"GPIO: {error}; on a Pi: pip install 'maxgreen[pi]'; elsewhere leave [board] out") from error
    return GPIO
