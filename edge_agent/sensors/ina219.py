"""INA219 through Adafruit's driver: raw shunt and bus registers, so that any shunt works (TI SBOS448G)."""

from typing import Any, Final

from adafruit_ina219 import INA219, ADCResolution, BusVoltageRange, Gain

from edge_agent.sensors.base import Electrical, SensorError
from edge_agent.sensors.bus import DRIVER_LOCK, OpenBus

BUS_LIMIT_UV: Final = 26_000_000  # absolute maximum of the chip, whatever its 32 V range says
SHUNT_FULL_SCALE_UV: Final = 320_000  # gain /8
_SHUNT_STEP_UV: Final = 10
_BUS_STEP_UV: Final = 4_000


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
        """Return one reading; SensorError on a bus fault, saturation, or after a brown-out of the chip."""
        with DRIVER_LOCK:
            try:
                if self._chip is None:
                    self._begin()
                shunt_uv = int(self._chip.raw_shunt_voltage) * _SHUNT_STEP_UV
                bus_uv = int(self._chip.raw_bus_voltage) * _BUS_STEP_UV
                configured = self._is_configured()
                if not configured:
                    self._configure()
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
        self._chip = chip
        self._configure()

    def _configure(self) -> None:
        self._chip.bus_voltage_range = BusVoltageRange.RANGE_32V
        self._chip.gain = Gain.DIV_8_320MV
        self._chip.bus_adc_resolution = ADCResolution.ADCRES_12BIT_4S
        self._chip.shunt_adc_resolution = ADCResolution.ADCRES_12BIT_4S

    def _is_configured(self) -> bool:
        # the averaging differs from the chip's reset value, so a brown-out shows
        return bool(self._chip.shunt_adc_resolution == ADCResolution.ADCRES_12BIT_4S)
