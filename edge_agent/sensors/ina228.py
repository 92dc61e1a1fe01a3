"""INA228 through Adafruit's driver: 20 bits, up to 85 V, and an accumulator that checks the samples (TI SBOSA20)."""

import logging
import time
from collections.abc import Callable
from typing import Any, Final

from adafruit_ina228 import INA228

from edge_agent.sensors.base import Electrical, SensorError
from edge_agent.sensors.bus import DRIVER_LOCK, OpenBus
from edge_agent.sensors.registers import holds, write_u16

BUS_LIMIT_UV: Final = 85_000_000
SHUNT_FULL_SCALE_UV: Final = 163_840  # ADC range 0
_FULL_SCALE: Final = 2**19 - 1
_VSHUNT, _VBUS = 0x04, 0x05
_WANTED: Final = {
    0x00: 0x0000,  # configuration: ±163.84 mV over the shunt
    0x01: 0xF000 | 2 << 9 | 3 << 6 | 5 << 3 | 2,  # continuous; 150 µs, 280 µs and 1,052 µs; averaged over 16
    0x02: 4_096,  # 13107.2e6 · current step · shunt, where full scale of the shunt is the largest current
}
_CONVERSION_S: Final = 0.026  # 16 times 1.482 ms, and a tenth; until then the registers hold another one
_CHECK_S: Final = 60.0
_TOLERANCE: Final = 0.02
_TOLERANCE_J: Final = 1.0
_LOG: Final = logging.getLogger(__name__)


class Ina228Sensor:
    """An INA228 on an I2C bus. Once a minute what its samples integrate to is compared with what the chip counted."""

    part = "INA228"

    def __init__(
        self, open_bus: OpenBus, *, address: int, shunt_uohm: int, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        """Touch nothing yet: a chip that does not answer now may answer later."""
        self._open_bus = open_bus
        self._address = address
        self._shunt_uohm = shunt_uohm
        self._now_s = now_s
        self._chip: Any = None
        self._check: _CrossCheck | None = None
        self.disagrees = False

    @property
    def full_scale(self) -> Electrical:
        """The largest voltage and current that it reads."""
        return Electrical(BUS_LIMIT_UV, SHUNT_FULL_SCALE_UV * 1_000_000 // self._shunt_uohm)

    def read(self) -> Electrical:
        """Return one reading; SensorError on a bus fault, saturation, or after a brown-out of the chip."""
        with DRIVER_LOCK:
            try:
                if self._chip is None:
                    self._begin()
                shunt = _signed(self._chip._reg24(_VSHUNT)) >> 4  # noqa: SLF001 - the driver's own values are floats
                bus = self._chip._reg24(_VBUS) >> 4  # noqa: SLF001
                energy_j = self._chip.energy
                configured = holds(self._chip, _WANTED, _CONVERSION_S)
                if not configured:
                    self._check = None  # what the accumulator holds was counted otherwise
            except (OSError, ValueError, RuntimeError) as error:
                raise SensorError(
                    f"INA228 at address {self._address:#04x}: {error}; check wiring and address"
                ) from error
        if not configured:
            raise SensorError("INA228: the chip lost its configuration (brown-out); it was configured again")
        bus_uv = bus * 1_953_125 // 10_000
        if abs(shunt) >= _FULL_SCALE or bus_uv > BUS_LIMIT_UV:
            raise SensorError(f"INA228: saturated at {bus_uv / 1e6} V bus, {shunt * 312.5e-6} mV shunt")
        reading = Electrical(bus_uv, shunt * 312_500 // self._shunt_uohm)
        self._compare(reading, energy_j)
        return reading

    def _begin(self) -> None:
        chip = INA228(self._open_bus(), address=self._address)
        # the driver assumes 15 mΩ and 10 A until it is told
        chip.set_calibration(self._shunt_uohm / 1e6, SHUNT_FULL_SCALE_UV / self._shunt_uohm)
        for register, value in _WANTED.items():
            write_u16(chip, register, value)
        time.sleep(_CONVERSION_S)
        self._chip, self._check = chip, None

    def _compare(self, reading: Electrical, energy_j: float) -> None:
        power_w = abs(reading.voltage_uv * reading.current_ua) / 1e12  # the chip counts without a sign
        now_s = self._now_s()
        if self._check is None or energy_j < self._check.energy_j:
            self._check = _CrossCheck(now_s, now_s, power_w, energy_j, 0.0)
            return
        self._check = check = self._check.at(now_s, power_w)
        if now_s - check.begin_s < _CHECK_S:
            return
        counted_j = energy_j - check.energy_j
        disagrees = abs(counted_j - check.sampled_j) > _TOLERANCE_J + _TOLERANCE * max(counted_j, check.sampled_j)
        if disagrees != self.disagrees:
            verdict = "disagrees: power changes faster than it is sampled" if disagrees else "agrees again"
            _LOG.warning(
                "INA228: its accumulator (%.1f J) and the samples (%.1f J): %s", counted_j, check.sampled_j, verdict
            )
        self.disagrees = disagrees
        self._check = _CrossCheck(now_s, now_s, power_w, energy_j, 0.0)


class _CrossCheck:
    def __init__(self, begin_s: float, last_s: float, power_w: float, energy_j: float, sampled_j: float) -> None:
        self.begin_s, self.last_s, self.power_w = begin_s, last_s, power_w
        self.energy_j, self.sampled_j = energy_j, sampled_j

    def at(self, now_s: float, power_w: float) -> "_CrossCheck":
        added_j = (self.power_w + power_w) / 2 * (now_s - self.last_s)
        return _CrossCheck(self.begin_s, now_s, power_w, self.energy_j, self.sampled_j + added_j)


def _signed(value: int) -> int:
    return value - 2**24 if value & 2**23 else value
