"""A Pi on a bench: `python -m tests.e2e.pi LINE COMMAND…` runs `maxgreen` with sensors and pins that are wired here.

The INA219 of bus 3 meters a line that is closed while the file LINE says 1; the relay's pin writes it. The others see
nothing flow. Real are the agent, its drivers and the RPi.GPIO API; what answers them are registers and levels.
"""

import os
import sys
from pathlib import Path

from edge_agent import source
from edge_agent.sensors import bus
from maxgreen.cli import main
from tests.fakes.ina219_bus import Ina219Bus
from tests.fakes.lgpio import Pins

LINE_BUS, RELAY_PIN, CURRENT_A = 3, 17, 1.5


class Line(Ina219Bus):
    """A sensor of a line: it sees a current while the line is closed."""

    def __init__(self, path):
        super().__init__(voltage=18.0, current=0.0)
        self.path = path

    def _register(self):
        self.current = CURRENT_A if self.path.exists() and self.path.read_text() == "1" else 0.0
        return super()._register()


class Relay(Pins):
    """Pins, of which one is the line's relay."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def _claim_output(self, handle, pin, level=0, flags=0):
        self._switch(pin, level)
        return super()._claim_output(handle, pin, level, flags)

    def _write(self, handle, pin, level):
        self._switch(pin, level)
        return super()._write(handle, pin, level)

    def _switch(self, pin, level):
        if pin == RELAY_PIN:
            fresh = self.path.with_suffix(".new")
            fresh.write_text(str(int(level)))
            fresh.replace(self.path)


if __name__ == "__main__":
    line = Path(sys.argv.pop(1))
    buses = {LINE_BUS: Line(line)}
    bus._open = lambda number: buses.setdefault(number, Ina219Bus(voltage=18.0, current=0.0))
    source.kernel_clock = lambda: (True, 1)  # this machine may have no time server
    sys.modules["lgpio"] = Relay(line).module()
    os.environ |= {"RPI_LGPIO_REVISION": "902120", "RPI_LGPIO_CHIP": "0"}
    main()
