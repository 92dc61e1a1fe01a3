"""INA219 through Adafruit's driver: raw shunt and bus registers, so that any shunt works (TI SBOS448G)."""

import time
from typing import Any, Final

from adafruit_ina219 import INA219

from edge_agent.sensors.base import Electrical, SensorError
from edge_agent.sensors.bus import DRIVER_LOCK, OpenBus
from edge_agent.sensors.registers import holds, write_u16

BUS_LIMIT_UV: Final = 26_000_000  # absolute maximum of the chip, whatever its 32 V range says
SHUNT_FULL_SCALE_UV: Final = 320_000  # gain /8
_SHUNT_STEP_UV: Final = 10
_BUS_STEP_UV: Final = 4_000
# configuration: 32 V range, gain /8, twice 12 bits averaged over 4 samples, continuous; not the reset value 0x399f
_WANTED: Final = {0x00: 0x2000 | 0b11 << 11 | 0b1010 << 7 | 0b1010 << 3 | 0b111}
_CONVERSION_S: Final = 0.006  # twice 2.13 ms, at most a tenth longer; until then the registers hold another one


class Ina219Sensor:
    """An INA219 on an I2C bus, at its widest ranges so that nothing clips silently."""

    part = "INA219"

    def __init__(self, open_bus: OpenBus, *, address: int, shunt_uohm: int) -> None:
        """Touch nothing yet: a chip that does not answer now may answer later."""
        self._open_bus = open_bus
        self._address = address
        self._shunt_uohm = shunt_uohm
        self._chip: Any = None

    @property
    def full_scale(self) -> Electrical:
        """The largest voltage and current that it reads."""
        return Electrical(BUS_LIMIT_UV, SHUNT_FULL_SCALE_UV * 1_000_000 // self._shunt_uohm)

    def read(self) -> Electrical:
        """Return one reading; SensorError on a bus fault, saturation, or when the chip was not configured as it should.

        The configuration is compared with each reading: a brown-out resets it, and a glitch while it is written can
        leave the chip asleep or in another range.
        """
        with DRIVER_LOCK:
            try:
                if self._chip is None:
                    self._begin()
                shunt_uv = int(self._chip.raw_shunt_voltage) * _SHUNT_STEP_UV
                bus_uv = int(self._chip.raw_bus_voltage) * _BUS_STEP_UV
                configured = holds(self._chip, _WANTED, _CONVERSION_S)
            except (OSError, ValueError) as error:
                raise SensorError(
                    f"INA219 at address {self._address:#04x}: {error}; check wiring and address"
                ) from error
        if not configured:
            raise SensorError("INA219: the chip lost its configuration (brown-out); it was configured again")
        if abs(shunt_uv) >= SHUNT_FULL_SCALE_UV or bus_uv > BUS_LIMIT_UV:
            raise SensorError(f"INA219: saturated at {bus_uv / 1e6} V bus, {shunt_uv / 1e3} mV shunt")
        return Electrical(bus_uv, shunt_uv * 1_000_000 // self._shunt_uohm)

    def _begin(self) -> None:
        chip = INA219(self._open_bus(), addr=self._address)
        for register, value in _WANTED.items():  # the driver has left its own there
            write_u16(chip, register, value)
        time.sleep(_CONVERSION_S)
        self._chip = chip
