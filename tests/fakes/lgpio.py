"""The functions of lgpio that rpi-lgpio calls, on levels in memory: the real RPi.GPIO API runs on it."""

import importlib.util
import sys
import types

from tests.conftest import need

SET_PULL_UP, SET_PULL_DOWN, SET_PULL_NONE, SET_ACTIVE_LOW = 32, 64, 128, 4


class Pins:
    """Levels of a chip's lines; `inputs` are what is wired to them from outside."""

    def __init__(self):
        self.outputs, self.inputs, self.claimed = {}, {}, set()

    def module(self):
        """Return a stand-in for the module lgpio."""
        found = types.ModuleType("lgpio")
        found.__getattr__ = self._missing
        found.error = type("error", (Exception,), {})
        for name, value in {
            "SET_PULL_UP": SET_PULL_UP, "SET_PULL_DOWN": SET_PULL_DOWN, "SET_PULL_NONE": SET_PULL_NONE,
            "SET_ACTIVE_LOW": SET_ACTIVE_LOW, "SET_BIAS_PULL_UP": SET_PULL_UP, "SET_BIAS_PULL_DOWN": SET_PULL_DOWN,
            "SET_BIAS_DISABLE": SET_PULL_NONE,
        }.items():  # fmt: skip
            setattr(found, name, value)
        found.gpiochip_open = lambda _chip: 1
        found.gpiochip_close = lambda _handle: 0
        found.gpio_claim_output = self._claim_output
        found.gpio_claim_input = self._claim_input
        found.gpio_write = self._write
        found.gpio_read = self._read
        found.gpio_free = self._free
        found.gpio_get_mode = lambda _handle, pin: 0x200 if pin in self.outputs else 0x100
        return found

    def _claim_output(self, _handle, pin, level=0, flags=0):
        self.claimed.add(pin)
        self.outputs[pin] = level
        return 0

    def _claim_input(self, _handle, pin, flags=0):
        self.claimed.add(pin)
        self.outputs.pop(pin, None)
        self.inputs.setdefault(pin, 1 if flags & SET_PULL_UP else 0)
        return 0

    def _write(self, _handle, pin, level):
        assert pin in self.outputs, f"pin {pin} is no output"
        self.outputs[pin] = level
        return 0

    def _read(self, _handle, pin):
        return self.outputs[pin] if pin in self.outputs else self.inputs.get(pin, 0)

    def _free(self, _handle, pin):
        self.claimed.discard(pin)
        return 0

    @staticmethod
    def _missing(name):
        if name.isupper():
            return 0
        raise AttributeError(name)


def rpi_gpio(monkeypatch, pins):
    """Import the real rpi-lgpio (as a Zero 2 W) on these pins."""
    found = importlib.util.find_spec("RPi")
    need(found and found.submodule_search_locations[0], "rpi-lgpio is not installed (make services)")
    for name in ("RPi", "RPi.GPIO", "lgpio"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "lgpio", pins.module())
    monkeypatch.setenv("RPI_LGPIO_REVISION", "902120")
    monkeypatch.setenv("RPI_LGPIO_CHIP", "0")
    from RPi import GPIO

    for name in ("RPi", "RPi.GPIO"):
        sys.modules.pop(name)  # nobody else finds a Pi here
    return GPIO
